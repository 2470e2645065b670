"""Deadlines: which requests are out of time. A step pays one comparison for it, however many streams there are."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from diastole.types import Request

SLACK = 64  # entries of requests that are over, beyond as many as there are of living ones, before they are thrown out


class Deadlines:
    """Those of requests that promise a time for the whole."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}  # of the living, by request id
        self._heap: list[tuple[float, str]] = []  # the same, and some of requests that are over

    def __len__(self) -> int:
        """Entries held, also those of requests that are over."""
        return len(self._heap)

    def add(self, request: Request) -> None:
        """A request that has arrived; without a promise for the whole there is nothing to watch."""
        if request.slo.total is not None:
            at = self._at[request.id] = request.arrival + request.slo.total
            heappush(self._heap, (at, request.id))

    def discard(self, id: str) -> None:
        """A request is over."""
        if self._at.pop(id, None) is not None and len(self._heap) > 2 * len(self._at) + SLACK:
            self._heap = [(at, id) for id, at in self._at.items()]
            heapify(self._heap)

    @property
    def next(self) -> float:
        """Before this time ``passed`` is empty; infinite: nobody has a deadline."""
        return self._heap[0][0] if self._heap else math.inf

    def passed(self, now: float) -> list[str]:
        """Ids of the living whose time is up, the earliest first, each told once."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            at, id = heappop(self._heap)
            if self._at.get(id) == at:
                del self._at[id]
                late.append(id)
        return late
