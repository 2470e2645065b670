"""Trace: what the engine did in its last steps, and what it holds now, for those who watch it.

Watching must cost the engine next to nothing: a step leaves one tuple per grant and one per output in a ring, and all
else is made of them when somebody asks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from diastole.types import SLO, Event, Grant, Stream

STEPS = 512  # kept
MOST_WORKS = 4096  # told at once, so that an answer has a size that is known
SHOWN = 8  # characters of a request's id: enough to tell streams apart, not enough to end one that is another's

PREFILL, DECODE = "prefill", "decode"

Granted: TypeAlias = tuple[str, int, str, int]  # request id, choice, kind, units
Said: TypeAlias = tuple[str, int, int]  # request id, choice, units of output
Work: TypeAlias = tuple[str, int, str, int, int]  # and at last: units of output that it gave


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
    drafted: int = 0  # tokens that were guessed; 0 where nothing drafts
    kept: int = 0  # of them were right


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
        self._ring: deque[tuple[int, float, float, str, list[Granted], list[Said]]] = deque(maxlen=steps)

    def ran(self, service: str, began: float, took: float, works: list[Granted], events: Sequence[Event]) -> None:
        """Note a step that has been committed: what was ``granted`` before, and what came of it."""
        self.last += 1
        said = [(e.id, e.choice, e.units) for e in events if e.speaks]
        self._ring.append((self.last, began, took, service, works, said))

    def since(self, seq: int, most: int = MOST_WORKS) -> list[Step]:
        """Steps after number ``seq`` in their order; the newest of them if they hold more than ``most`` works."""
        steps: list[Step] = []
        for number, began, took, service, works, outputs in reversed(self._ring):
            most -= len(works)
            if number <= seq or most < 0:
                break
            said: Counter[tuple[str, int]] = Counter()
            for id, choice, units in outputs:
                said[id, choice] += units
            shown = [(shown_id(id), choice, kind, n, said[id, choice]) for id, choice, kind, n in works]
            steps.append(Step(number, began, took, service, shown))
        steps.reverse()
        return steps


def granted(grants: Sequence[Grant]) -> list[Granted]:
    """The works of a step, before its commit: of what kind they are shows only in what their streams still lack.

    A stream that has spoken and lacks what it said last, mostly one unit, decodes, with whatever it guesses behind it.
    All else fills its state: prefill, also when a preempted stream is computed again.
    """
    return [
        (s.req.id, s.index, DECODE if s.emitted_at is not None and (s.known - s.done == 1 or _said(s)) else PREFILL, n)
        for s, n in grants
    ]


def _said(stream: Stream) -> bool:
    """Whether it lacks nothing but what it said last, several units at once; not every loop's streams do that."""
    ahead: int = getattr(stream.own, "ahead", 0)
    return stream.known - stream.done <= 1 + ahead


def shown_id(id: str) -> str:
    """A request's id as watchers see it."""
    return id[-SHOWN:]
