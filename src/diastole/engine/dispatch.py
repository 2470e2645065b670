"""The default ``dispatch`` policy: least slack first, and nobody eats the time that another stream is owed.

The slack of a service is the time left until it must start to keep its tightest promise. The chosen service may run
until the first moment at which a rival has to start, including rivals that are idle now but whose next deadline is
known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

from diastole.slots import Candidate
from diastole.types import Ask, Grant

ROUNDING = 1e-9  # seconds: what was reckoned to end just in time does so, whatever sums of times are rounded to


class LeastSlack:
    """Earliest latest-start first. Where a promise is broken already all take turns, but for who must start now to be
    in time: who is late by seconds does not make all others so."""

    def __init__(self) -> None:
        self._turns = count()
        self._last: dict[int, int] = {}  # by service: its last turn

    def next(self, services: Sequence[Candidate], now: float) -> tuple[int, Sequence[Ask], float] | None:
        asking: list[tuple[int, Sequence[Ask]]] = []
        reserved: list[tuple[float, int]] = []
        for i, service in enumerate(services):
            if asks := service.asks():
                asking.append((i, asks))
            if len(services) > 1:  # a service keeps time free for others only
                reserved += [(at, i) for at in service.forecasts()]
        if not asking:
            return None
        if len(asking) == 1:  # nobody to compare it with
            ready = [(-math.inf, *asking[0])]
        else:
            ready = sorted(
                ((min(_latest_start(a, services[i]) for a in asks), i, asks) for i, asks in asking),
                key=lambda r: (r[0], r[1]),
            )
        _, index, asks = self._choose(ready, services, now)
        self._last[index] = next(self._turns)
        rivals = [at for at, i, _ in ready if i != index] + [at for at, i in reserved if i != index]
        bounds = [*rivals, min(a.due for a in asks)]  # running more than is urgent must not break its own promise
        # Promises already broken bound nothing: cutting this step to pieces would not mend them.
        left = min((at for at in bounds if at > now), default=math.inf) - now + ROUNDING
        return index, asks, left / services[index].cost.worst

    def _choose(
        self, ready: list[tuple[float, int, Sequence[Ask]]], services: Sequence[Candidate], now: float
    ) -> tuple[float, int, Sequence[Ask]]:
        first = ready[0]
        if first[0] >= now or len(ready) == 1:
            return first
        smallest = min(services[first[1]].cost.promise([Grant(a.stream, a.lo)]) for a in first[2])
        for other in ready[1:]:
            if now <= other[0] < now + smallest:
                return other
        return min(ready, key=lambda r: self._last.get(r[1], -1))


class FirstCome:
    """The rival: the service that has been asking for longest runs all that it would, whatever others are owed."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def next(self, services: Sequence[Candidate], now: float) -> tuple[int, Sequence[Ask], float] | None:
        asking = {i: asks for i, service in enumerate(services) if (asks := service.asks())}
        if not asking:
            return None
        self._since = {i: self._since.get(i, now) for i in asking}
        index = min(asking, key=lambda i: (self._since[i], i))
        del self._since[index]
        return index, asking[index], math.inf


def _latest_start(ask: Ask, service: Candidate) -> float:
    return ask.due - service.cost.promise([Grant(ask.stream, ask.lo)])
