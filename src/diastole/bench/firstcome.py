"""First come, first served among services: what ``LeastSlack`` is measured beside."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diastole.slots import Candidate
from diastole.types import Ask


class FirstCome:
    """The service that has been asking for longest runs all that it would, whatever others are owed."""

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
