"""Predicted seconds of a step, fitted online: seconds ≈ a + b·units + c·work.

``work`` is what attention reads: the sum over granted rows of the units each row looks back on. Coefficients are kept
non-negative and samples are kept per size bucket, so that a long run of small steps cannot wash out what is known of
large ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from diastole.types import Array, Grant

PER_BUCKET = 16  # latest samples kept of each size
REFIT = 512  # samples between fits; the first come earlier
EARLY = frozenset({16, 32, 64, 128, 256})


def features(grants: Sequence[Grant]) -> tuple[float, float, float]:
    """(1, units, work in thousands of units)."""
    units = sum([n for _, n in grants])
    work = sum([n * (stream.done + n / 2) for stream, n in grants])
    return 1.0, float(units), work / 1000


class LinearCost:
    """Fixed coefficients in seconds: for simulation and tests."""

    def __init__(self, base: float, per_unit: float, per_kilowork: float = 0.0) -> None:
        self.coefficients = (base, per_unit, per_kilowork)

    def predict(self, grants: Sequence[Grant]) -> float:
        return sum(c * f for c, f in zip(self.coefficients, features(grants), strict=True))

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """Fixed: nothing to learn."""


class FittedCost:
    """Learns from every step. Until it has seen enough it predicts from ``guess``, coefficients in seconds."""

    def __init__(self, guess: tuple[float, float, float] = (0.002, 0.001, 0.0005)) -> None:
        self.coefficients = guess
        self._samples: dict[tuple[int, int], deque[tuple[float, float, float, float]]] = {}
        self._seen = 0

    def predict(self, grants: Sequence[Grant]) -> float:
        a, b, c = self.coefficients
        one, units, work = features(grants)
        return a * one + b * units + c * work

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        one, units, work = features(grants)
        bucket = (int(units).bit_length(), int(work).bit_length())
        samples = self._samples.get(bucket)
        if samples is None:
            samples = self._samples[bucket] = deque(maxlen=PER_BUCKET)
        samples.append((one, units, work, seconds))
        self._seen += 1
        if self._seen % REFIT == 0 or self._seen in EARLY:
            self._fit()

    def _fit(self) -> None:
        # The median of each bucket: one slow step (a page fault, a neighbour) must not move the fit.
        rows = np.array([np.median(np.array(b), axis=0) for b in self._samples.values()])
        if len(rows) >= 2:
            self.coefficients = non_negative_fit(rows[:, :3], rows[:, 3])


def non_negative_fit(x: Array, y: Array) -> tuple[float, float, float]:
    """The non-negative (a, b, c) with the smallest relative squared error of x @ (a, b, c) against y: x (n, 3), y (n,).

    Three unknowns have seven possible supports, so all are tried.
    """
    weight = 1 / np.maximum(y, 1e-6)
    xw, yw = x * weight[:, None], y * weight
    best, least = np.zeros(3), float(yw @ yw)
    for size in (1, 2, 3):
        for support in combinations(range(3), size):
            part = xw[:, support]
            found, *_ = np.linalg.lstsq(part, yw, rcond=None)
            if (found < 0).any():
                continue
            error = float(((part @ found - yw) ** 2).sum())
            if error < least - 1e-12:
                best, least = np.zeros(3), error
                best[list(support)] = found
    return float(best[0]), float(best[1]), float(best[2])
