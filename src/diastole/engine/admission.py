"""Admission: which waiting stream is given state next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from diastole.types import Stream


class Admission(Protocol):
    """A policy over the streams that wait."""

    def next(self, waiting: Sequence[Stream], now: float) -> int:
        """The index of the one whose turn it is. ``waiting`` is in order of arrival and not empty."""
        ...


class InOrder:
    """Who came first."""

    def next(self, waiting: Sequence[Stream], now: float) -> int:
        return 0


class ByPriority:
    """Who has the lowest ``Request.priority``; of equals, who came first.

    Args:
        ageing: seconds of waiting that count as much as one step of priority, so that nobody waits for ever.
    """

    def __init__(self, ageing: float) -> None:
        self.ageing = ageing

    def next(self, waiting: Sequence[Stream], now: float) -> int:
        def rank(index: int) -> tuple[float, int]:
            request = waiting[index].req
            return request.priority - (now - request.arrival) // self.ageing, index

        return min(range(len(waiting)), key=rank)
