"""Intake: how live input comes in, what is done with what is late or lost, and when its answers are owed.

A unit is *ready* when its last sample has come, and its answer is owed a while later. Who sends more than a
second at once, or faster than real time, is owed answers at twice that pace: so a backlog is caught up with, and a
source whose clock runs a little fast is not answered later and later.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from diastole.live import Chunk, Counts, LiveParams, Signal
from diastole.types import Array

CATCH_UP = 2.0  # times real time, at which a backlog is owed
AT_ONCE = 1.0  # seconds of input that may come together and be owed together


class Origin(NamedTuple):
    """Where the counting of units begins, or begins anew behind a gap."""

    unit: int
    sample: int


class Intake:
    """What has come of a stream and is not absorbed yet.

    Args:
        signal: of the model.
        params: of the request.
        now: when the stream was opened.
    """

    def __init__(self, signal: Signal, params: LiveParams, now: float) -> None:
        self.signal, self.params = signal, params
        self.waiting = np.empty((0, len(signal.channels)), np.float32)  # samples in order
        self.came = 0  # number of the sample that follows them in the stream
        self.ended = False
        self.counts = Counts()
        self._now = now  # when something came last
        self._paced = now  # when the last whole unit counts as ready
        self._ready: deque[tuple[float, float]] = deque()  # when those that wait count as ready, and when they were
        self._origins: deque[Origin] = deque([Origin(0, 0)])
        self._early: list[tuple[int, Array]] = []  # what came before what is before it, in order

    def __len__(self) -> int:
        """Samples held."""
        return len(self.waiting) + sum(len(d) for _, d in self._early)

    # ---- coming in

    def take(self, chunk: Chunk, now: float, known: int) -> int:
        """Take a chunk in, of a stream that knows so many units; how many it knows then."""
        self._now = now if chunk.came is None else chunk.came
        if chunk.first is None:
            self._append(chunk.data)
        elif len(chunk.data):
            self._early.append((chunk.first, chunk.data))
            self._early.sort(key=lambda e: e[0])
        known = self._count(self._join(known, all_of_it=chunk.last))
        if chunk.last:  # what is left of a unit, which may be nothing
            self.ended = True
            self._ready.append((self._next(), self._now))
            known += 1
        return known

    def _next(self) -> float:
        """When one more unit would count as ready, if it were whole now."""
        return max(self._now, self._paced + (self.signal.period - AT_ONCE) / CATCH_UP)

    def _append(self, data: Array) -> None:
        self.waiting = np.concatenate([self.waiting, data.astype(np.float32, copy=False)])
        self.came += len(data)

    def _count(self, known: int) -> int:
        """Tell the units that are whole now."""
        for _ in range(len(self.waiting) // self.signal.hop - len(self._ready)):
            self._ready.append((self._next(), self._now))
            self._paced = max(self._now, self._paced + self.signal.period / CATCH_UP)
            known += 1
        return known

    def _join(self, known: int, all_of_it: bool) -> int:
        """Put what came early in its place, once what is before it is there or given up."""
        while self._early:
            first, data = self._early[0]
            missing = first - self.came
            if missing > 0:
                waited = max(at + len(d) for at, d in self._early) - first
                patient = self.params.lost == "wait" and waited < self.params.patience * self.signal.rate
                if patient and not all_of_it:
                    break
                self._tell(lost=missing)
                if self.params.lost == "drop":
                    known = self._begin_anew(known, first)
                else:
                    self._append(np.zeros((missing, len(self.signal.channels)), np.float32))
            del self._early[0]
            again = min(max(self.came - first, 0), len(data))
            self._tell(late=again)
            self._append(data[again:])
        return known

    def _begin_anew(self, known: int, sample: int) -> int:
        """At this sample; what is left of a unit before it is lost."""
        known = self._count(known)
        rest = len(self.waiting) % self.signal.hop
        self._tell(lost=rest)
        self.waiting = self.waiting[: len(self.waiting) - rest]
        self.came = sample
        self._origins.append(Origin(known, sample))
        return known

    def shed(self, most: int, done: int, known: int) -> int:
        """Throw the oldest units away until no more than ``most`` samples are held; how many units are known then."""
        hop = self.signal.hop
        drop = min(-(-(len(self) - most) // hop), len(self.waiting) // hop)
        if drop <= 0:
            return known
        self._tell(overrun=drop * hop)
        here = Origin(done, self.at(done + drop))
        later = [o._replace(unit=o.unit - drop) for o in self._origins if o.unit - drop > done]
        self._origins = deque([self._origins[0], here, *later])
        self.waiting = self.waiting[drop * hop :]
        for _ in range(drop):
            self._ready.popleft()
        return known - drop

    def _tell(self, lost: int = 0, late: int = 0, overrun: int = 0) -> None:
        c = self.counts
        self.counts = Counts(c.lost + lost, c.late + late, c.overrun + overrun)

    # ---- going out

    def at(self, unit: int) -> int:
        """The first sample of a unit."""
        origin = next(o for o in reversed(self._origins) if o.unit <= unit)
        return origin.sample + (unit - origin.unit) * self.signal.hop

    def seen(self, unit: int) -> int:
        """Samples before a unit, since the stream began or began anew."""
        return (unit - self._origins[0].unit) * self.signal.hop

    def until_break(self, done: int, units: int) -> int:
        """Of the next so many units, those before the stream begins anew."""
        return min([units, *(o.unit - done for o in self._origins if o.unit > done)])

    def begins_anew(self, done: int) -> int:
        """Samples that are missing before the next unit, if the stream begins anew there; else 0."""
        missing = 0
        while len(self._origins) > 1 and self._origins[1].unit <= done:
            before = self._origins.popleft()
            here = self._origins[0]
            missing += here.sample - before.sample - (here.unit - before.unit) * self.signal.hop
        return missing

    def leave(self, units: int) -> Array:
        """The samples of the next units, which are absorbed now; the last unit may be short."""
        n = min(units * self.signal.hop, len(self.waiting))
        data, self.waiting = self.waiting[:n], self.waiting[n:]
        for _ in range(units):
            self._ready.popleft()
        return data

    def ready(self, units: int) -> float:
        """When the first so many of those that wait count as ready, in seconds."""
        return self._ready[units - 1][0]

    def whole(self, units: int) -> float:
        """When they really were."""
        return self._ready[units - 1][1]

    def expected(self, units: int) -> float:
        """When they will, if what is missing comes at its rate."""
        missing = units * self.signal.hop - len(self.waiting)
        return max(self._now + missing / self.signal.rate, self._next())
