"""Trace: what the engine did in its last steps, and what it holds now, for those who watch it.

Watching must cost the engine next to nothing: a step leaves one tuple per grant in a ring, and all else is made of
them when somebody asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from diastole.types import SLO, Grant

STEPS = 512  # kept
MOST_WORKS = 4096  # told at once, so that an answer has a size that is known
SHOWN = 8  # characters of a request's id: enough to tell streams apart, not enough to end one that is another's

PREFILL, DECODE = "prefill", "decode"

Work: TypeAlias = tuple[str, int, str, int]  # request id, choice, kind, units


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one service. ``began`` and ``took`` are seconds, on the engine's clock."""

    seq: int
    began: float
    took: float
    service: str
    streams: list[Work]


@dataclass(frozen=True, slots=True)
class StreamView:
    """One stream now. Times are seconds on the engine's clock; ``first`` is None before the first output."""

    id: str
    choice: int
    running: bool  # else it waits for room
    known: int
    done: int
    arrived: float
    first: float | None
    due: float
    slo: SLO


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service now; ``streams`` are its oldest."""

    pages: int
    pages_used: int
    running: int
    waiting: int
    streams: list[StreamView]


@dataclass(frozen=True, slots=True)
class View:
    """The engine at the time ``now``. ``last`` is the number of its last step."""

    now: float
    last: int
    steps: list[Step]
    services: dict[str, ServiceView]


class Trace:
    """A ring of the last steps, numbered from 1."""

    def __init__(self, steps: int = STEPS) -> None:
        self.last = 0
        self._ring: deque[tuple[int, float, float, str, list[Work]]] = deque(maxlen=steps)

    def ran(self, service: str, began: float, took: float, grants: Sequence[Grant]) -> None:
        """Note a step, before it is committed: what kind of work a grant is shows only in what its stream still lacked.

        A stream that has spoken and absorbs the one unit it lacks decodes, with whatever it guesses behind it. All else
        fills its state: prefill, also when a preempted stream is computed again.
        """
        self.last += 1
        works = [
            (s.req.id, s.index, DECODE if s.emitted_at is not None and s.known - s.done == 1 else PREFILL, n)
            for s, n in grants
        ]
        self._ring.append((self.last, began, took, service, works))

    def since(self, seq: int, most: int = MOST_WORKS) -> list[Step]:
        """Steps after number ``seq`` in their order; the newest of them if they hold more than ``most`` works."""
        steps: list[Step] = []
        for number, began, took, service, works in reversed(self._ring):
            most -= len(works)
            if number <= seq or most < 0:
                break
            shown = [(shown_id(id), choice, kind, n) for id, choice, kind, n in works]
            steps.append(Step(number, began, took, service, shown))
        steps.reverse()
        return steps


def shown_id(id: str) -> str:
    """A request's id as watchers see it."""
    return id[-SHOWN:]
