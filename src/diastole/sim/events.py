"""Events in simulated time, and pipelines that batches go through."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

from diastole.sim.latency import Seconds


class Agenda:
    """What will happen when; ``run`` lets it. Of two things at the same time the one that was planned first comes
    first, so that the same input gives the same run."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Plan a call.

        Raises:
            ValueError: the time is past, or no time.
        """
        if not time >= self.now:
            raise ValueError(f"at {self.now} s nothing can happen at {time} s any more")
        heapq.heappush(self._heap, (time, next(self._serial), call))

    def run(self) -> None:
        """Until nothing is planned."""
        while self._heap:
            self.now, _, call = heapq.heappop(self._heap)
            call()


class Work(NamedTuple):
    """A batch that goes through a pipeline."""

    takes: Seconds
    done: Callable[[], None]  # told when it leaves the last stage


class Stages:
    """A pipeline of equal stages. Batches keep their order, each stage has one at a time, and the next is formed when
    the first stage is free: whoever is asked for it decides then.

    Args:
        form: gives the next batch; None: there is none until ``wake`` is called again.
    """

    def __init__(self, agenda: Agenda, stages: int, form: Callable[[], Work | None]) -> None:
        self.agenda, self.form = agenda, form
        self._free = [0.0] * stages  # seconds at which each stage is
        self._armed = False

    def wake(self) -> None:
        """Something may have become possible."""
        if not self._armed:
            self._armed = True
            self.agenda.at(max(self.agenda.now, self._free[0]), self._start)

    def _start(self) -> None:
        self._armed = False
        work = self.form()
        if work is None:
            return
        at = self.agenda.now + work.takes.first
        for i, free in enumerate(self._free):
            at = self._free[i] = max(at, free) + work.takes.stage
        self.agenda.at(at, partial(self._out, work))
        self.wake()

    def _out(self, work: Work) -> None:
        work.done()
        self.wake()
