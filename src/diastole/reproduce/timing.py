"""Measuring several ways to do one thing in turns, A B A B ..., so that what the machine does meanwhile hits all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __float__(self) -> float:
        return self.median


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by name, one per round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str) -> Spread:
        """How many times as fast ``name`` is as ``over``: of the rounds' own ratios."""
        return Spread.of([b / a for a, b in zip(self.seconds[name], self.seconds[over], strict=True)])


def interleaved(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 1,
    step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time each piece of work once per round, in turns, without the garbage collector, which runs before each turn. A
    turn should last some milliseconds at least: it starts with cold caches.

    Args:
        warm: rounds before, which do not count.
        step: is called after each turn, for progress.
        clock: gives seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with _no_garbage_collector():
        for turn in range(warm + rounds):
            for name, action in work.items():
                gc.collect()
                began = clock()
                action()
                took = clock() - began
                if turn >= warm:
                    seconds[name].append(took)
                step()
    return Timings(seconds)


@contextmanager
def _no_garbage_collector() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
