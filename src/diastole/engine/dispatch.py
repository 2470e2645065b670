"""The default ``dispatch`` policy: least slack first, and nobody eats the time that another stream is owed.

The slack of a service is the time left until it must start to keep its tightest promise. The chosen service may run
as long as all that its rivals owe can still be done in time after it, one after the other, in order of their dues: what
they ask for now, and what those that are idle will ask for next. A promise that is broken already bounds nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from diastole.slots import Candidate
from diastole.types import Ask, Grant, Owed

ROUNDING = 1e-9  # seconds: what was reckoned to end just in time does so, whatever sums of times are rounded to
CREDIT = 1.0  # seconds that a service may have had less than another and still come first for it
SOON = 1.0  # seconds: what must begin by then delays who is late by no more if it begins now


class Ready(NamedTuple):
    """A service that asks."""

    service: int
    asks: Sequence[Ask]
    start: float  # when it must start at the latest to keep those of its promises that can be kept; infinite: none can
    late: bool  # of some it is too late
    owed: Owed | None  # what can be kept: due first, and what it takes


class LeastSlack:
    """Earliest latest-start first. Where promises are broken already, the late and those that must start soon share the
    time: who has had least of it comes first, but for who must start now. So who is late by seconds does not make all
    others so, and who has minutes left does not take the time of the late."""

    def __init__(self) -> None:
        self._had: dict[int, float] = {}  # seconds of each service that asks
        self._running: tuple[int, float] | None = None  # who was chosen last, and when

    def next(self, services: Sequence[Candidate], now: float) -> tuple[int, Sequence[Ask], float] | None:
        asking = [(i, asks) for i, service in enumerate(services) if (asks := service.asks())]
        free = math.inf
        if len(services) > 1:
            self._account([i for i, _ in asking], now)
        if not asking:
            return None
        index, asks = asking[0]
        if len(services) > 1:
            ready = [_ready(i, asks, services[i], now) for i, asks in asking]
            chosen = self._choose(ready, services, now)
            index, asks = chosen.service, chosen.asks
            # A service keeps time free for others only.
            owed = [r.owed for r in ready if r is not chosen and r.owed is not None]
            owed += [o for i, service in enumerate(services) if i != index for o in service.forecasts()]
            free = last_start(owed, now)
            self._running = index, now
        # Running more than is urgent must not break its own promise. If that is broken, cutting would not mend it.
        own = min([a.due for a in asks])
        left = min(free, own if own > now else math.inf) - now + ROUNDING
        return index, asks, left / services[index].cost.worst

    def _account(self, asking: Sequence[int], now: float) -> None:
        """Who ran had the time since. Who did not ask has saved little up."""
        if self._running is not None:
            index, since = self._running
            self._had[index] = self._had.get(index, 0.0) + now - since
            self._running = None
        most = max((self._had.get(i, 0.0) for i in asking), default=0.0)
        self._had = {i: max(self._had.get(i, 0.0), most - CREDIT) for i in asking}

    def _choose(self, ready: Sequence[Ready], services: Sequence[Candidate], now: float) -> Ready:
        if len(ready) == 1:
            return ready[0]
        if any(r.late for r in ready):
            sharing = [r for r in ready if r.late or r.start < now + SOON]
            first = min(sharing, key=lambda r: (self._had[r.service], r.start))
        else:
            first = min(ready, key=lambda r: r.start)
        smallest = min(services[first.service].cost.promise([Grant(a.stream, a.lo)]) for a in first.asks)
        urgent = [r for r in ready if r is not first and r.start < now + smallest]
        for other in sorted(urgent, key=lambda r: r.start):
            assert other.owed is not None
            if first.start == math.inf or now + other.owed.seconds <= first.start:
                return other
        return first


def _ready(index: int, asks: Sequence[Ask], service: Candidate, now: float) -> Ready:
    price = service.cost.promise
    starts = [ask.due - price([Grant(ask.stream, ask.lo)]) for ask in asks]
    kept = [(start, ask) for start, ask in zip(starts, asks, strict=True) if start >= now]
    if not kept:
        return Ready(index, asks, math.inf, True, None)
    start, tightest = min(kept, key=lambda k: k[0])
    owed = Owed(min(ask.due for _, ask in kept), price([Grant(ask.stream, ask.lo) for _, ask in kept]))
    if owed.due - owed.seconds < now:  # not all of it, then
        owed = Owed(tightest.due, tightest.due - start)
    return Ready(index, asks, start, len(kept) < len(asks), owed)


def last_start(owed: Iterable[Owed], now: float) -> float:
    """The latest time at which all that is owed can begin and each still be in time, one after the other; infinite:
    nothing is owed. What would be late even if it began now is left out.
    """
    total, last = 0.0, math.inf
    for due, seconds in sorted(owed):
        if due - total - seconds > now:
            total += seconds
            last = min(last, due - total)
    return last
