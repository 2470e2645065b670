"""What the latest values stay below, but for one that is far from all others."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

LATEST = 1000  # values that are remembered
SOME = 100  # so many are enough to tell what is far from all others
FAR = 1.25  # times the second largest: what happened once says little of the next


class Tail:
    """Of a row of values, the largest of the latest, but at most ``FAR`` times the second.

    Args:
        least: ``worst`` is never less.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._values: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._values) == LATEST:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        self._values.append(value)
        insort(self._sorted, value)

    @property
    def worst(self) -> float:
        if not self._sorted:
            return self._least
        largest = self._sorted[-1]
        if len(self._sorted) >= SOME:
            largest = min(largest, FAR * self._sorted[-2])
        return max(largest, self._least)
