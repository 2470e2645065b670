"""Predicted seconds of a step, fitted online: seconds ≈ (a + b·units + c·context + d·work) · r(units).

``context`` is what attention has to fetch: the units that each stream has absorbed and now absorbs. ``work`` is what it
computes: the sum over granted rows of the units each row looks back on. Coefficients are kept non-negative and samples
are kept per size bucket, so that a long run of small steps cannot wash out what is known of large ones. Rows cost less
the more of them come together, in jumps, which no line follows: ``r`` says what steps of a size take beside the line.

A machine is slower for a while when others work on it. What the last steps took beside what was predicted says how
much; what a size takes is looked at beside that, so that sizes seen at different times compare.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from diastole.engine.tail import Tail
from diastole.types import Array, Grant

PER_BUCKET = 16  # latest samples kept of each size
REFIT = 512  # samples between fits; the first come earlier
EARLY = frozenset({16, 32, 64, 128, 256})
FINE = 16  # up to so many units each number is a size of its own
FEW = 5  # samples that a fit counts for
BESIDE = 11  # latest samples of what a size takes beside the line: their median counts
RECENT = 7  # latest steps that tell how slow the machine is now: sooner than any size forgets
LAZY = 8  # steps of one unit per stream are taken in so many together: what is done in each finds nothing in the caches
SLOWEST = 8.0  # times as slow as always, or as fast

Features = tuple[float, float, float, float]
Sample = tuple[float, float, float, float, float]  # features and seconds


@dataclass(frozen=True, slots=True)
class Samples:
    """Steps of one size."""

    size: int
    context: int
    steps: list[Sample]


def features(grants: Sequence[Grant]) -> Features:
    """(1, units, context and work in thousands of units)."""
    counts = [n for _, n in grants]
    done = [stream.done for stream, _ in grants]
    units, before = sum(counts), sum(done)
    decodes = units == len(counts)  # one unit of each
    work = before + units / 2 if decodes else sum([n * (d + n / 2) for n, d in zip(counts, done, strict=True)])
    return 1.0, float(units), (before + units) / 1000, work / 1000


def more(grants: Sequence[Grant], most: int) -> tuple[Array, Array, Array, Array]:
    """The features with 0 to ``most`` more units of the first stream: each (most + 1,)."""
    one, units, context, work = features(grants)
    stream, n = grants[0]
    m = np.arange(most + 1)
    return np.full(most + 1, one), units + m, context + m / 1000, work + (m * (stream.done + n) + m * m / 2) / 1000


class LinearCost:
    """Fixed coefficients in seconds: for simulation and tests."""

    worst = 1.0

    def __init__(self, base: float, per_unit: float, per_kilowork: float = 0.0, per_kilocontext: float = 0.0) -> None:
        self.coefficients = (base, per_unit, per_kilocontext, per_kilowork)

    def predict(self, grants: Sequence[Grant]) -> float:
        return _dot(self.coefficients, features(grants))

    def promise(self, grants: Sequence[Grant]) -> float:
        return self.predict(grants)

    def rising(self, grants: Sequence[Grant], most: int) -> Array:
        found: Array = np.array(self.coefficients) @ np.stack(more(grants, most))
        return found

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """Fixed: nothing to learn."""


class FittedCost:
    """Learns from every step. Until it has seen enough it predicts from ``guess``, coefficients in seconds."""

    def __init__(
        self,
        guess: Features = (0.002, 0.001, 0.0, 0.0005),
        of: Callable[[Sequence[Grant]], Features] = features,
    ) -> None:
        self.coefficients, self._of = guess, of
        self._samples: dict[tuple[int, int], deque[Sample]] = {}
        self._beside: dict[int, deque[float]] = {}  # by size: measured over fitted, as if the machine were as always
        self._ratios: dict[int, float] = {}  # by size: the median of that
        self._recent: deque[float] = deque(maxlen=RECENT)  # measured over predicted
        self._slow = 1.0  # how many times as slow as always the machine is now
        self._late = Tail(1.0), Tail(1.0)  # measured over predicted: of fine sizes, and of larger ones
        self._seen = 0
        self._asked: tuple[Sequence[Grant], Features] = (), (0.0, 0.0, 0.0, 0.0)  # that which was predicted last
        self._pending: list[tuple[Features, float]] = []  # features and seconds of steps that are not taken in yet

    def predict(self, grants: Sequence[Grant]) -> float:
        x = self._of(grants)
        self._asked = grants, x
        return self._predicted(x)

    def promise(self, grants: Sequence[Grant]) -> float:
        x = self._of(grants)
        return self._predicted(x) * min(self._late_of(x).worst, SLOWEST)

    def _predicted(self, x: Features) -> float:
        return _dot(self.coefficients, x) * self._ratio(int(x[1])) * self._slow

    def rising(self, grants: Sequence[Grant], most: int) -> Array:
        x = more(grants, most)
        found: Array = (np.array(self.coefficients) @ np.stack(x)) * [self._ratio(int(n)) * self._slow for n in x[1]]
        return found

    def _ratio(self, units: int) -> float:
        """Of this size, or of the nearest that was seen."""
        ratios, size = self._ratios, _size(units)
        found = ratios.get(size)
        if found is None and ratios:
            found = ratios[min(ratios, key=lambda known: abs(known - size))]
        return 1.0 if found is None else found

    @property
    def worst(self) -> float:
        return min(self._late[1].worst, SLOWEST)

    def _late_of(self, x: Features) -> Tail:
        return self._late[x[1] > FINE]

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        asked, x = self._asked
        if asked is not grants or x[1] != len(grants):  # the same, and none was added since
            x = self._of(grants)
        self._pending.append((x, seconds))
        if x[1] > len(grants) or len(self._pending) == LAZY:
            self._take_in()

    def _take_in(self) -> None:
        for x, seconds in self._pending:
            self._took(x, seconds)
        self._pending.clear()

    def _took(self, x: Features, seconds: float) -> None:
        size = _size(int(x[1]))
        bucket = (size, int(x[2] * 1000).bit_length())
        samples = self._samples.get(bucket)
        if samples is None:
            samples = self._samples[bucket] = deque(maxlen=PER_BUCKET)
        samples.append((*x, seconds))
        self._seen += 1
        if size in self._beside:
            self._late_of(x).add(seconds / max(self._predicted(x), 1e-9))
            beside = seconds / max(_dot(self.coefficients, x), 1e-9)
            self._recent.append(beside / max(self._ratios[size], 1e-9))
            self._slow = min(max(_middle(self._recent), 1 / SLOWEST), SLOWEST)
            self._beside[size].append(beside / self._slow)
            self._ratios[size] = _middle(self._beside[size])
        if self._seen % REFIT == 0 or self._seen in EARLY:
            self._fit()

    @property
    def samples(self) -> list[Samples]:
        """Those that the next fit would go by."""
        self._take_in()
        return [Samples(size, context, list(steps)) for (size, context), steps in self._samples.items()]

    def take_up(self, samples: Sequence[Samples]) -> None:
        """Begin with what another one knew."""
        for of in samples:
            self._samples[of.size, of.context] = deque(of.steps, maxlen=PER_BUCKET)
        self._seen = sum(map(len, self._samples.values()))
        self._fit()

    def knows(self, units: int) -> bool:
        """Whether it has fitted steps of about this size."""
        self._take_in()
        return _size(units) in self._ratios

    def _fit(self) -> None:
        # The median of each bucket: one slow step (a page fault, a neighbour) must not move the fit.
        rows = np.array([np.median(np.array(b), axis=0) for b in self._samples.values()])
        if len(rows) < 2:
            return
        found = non_negative_fit(rows[:, :-1], rows[:, -1])
        self.coefficients = found[0], found[1], found[2], found[3]
        ratios = rows[:, -1] / np.maximum(rows[:, :-1] @ np.array(found), 1e-9)
        sizes = np.array([size for size, _ in self._samples])
        self._ratios = {int(s): float(np.median(ratios[sizes == s])) for s in np.unique(sizes)}
        self._beside = {size: deque([ratio] * FEW, maxlen=BESIDE) for size, ratio in self._ratios.items()}
        self._recent.clear()
        self._slow = 1.0


def _middle(values: Sequence[float] | deque[float]) -> float:
    return sorted(values)[len(values) // 2]


def _size(units: int) -> int:
    """The size bucket of a step: half powers of two beyond the fine ones."""
    if units <= FINE:
        return units
    power = units.bit_length()
    return FINE + 2 * (power - FINE.bit_length()) + (units >> (power - 2) & 1)


def _dot(coefficients: Sequence[float], x: Features) -> float:
    a, b, c, d = coefficients
    return a * x[0] + b * x[1] + c * x[2] + d * x[3]


def non_negative_fit(x: Array, y: Array) -> tuple[float, ...]:
    """The non-negative coefficients with the smallest relative squared error of x @ them against y: x (n, k), y (n,).

    A few unknowns have few possible supports, so all are tried.
    """
    weight = 1 / np.maximum(y, 1e-6)
    xw, yw = x * weight[:, None], y * weight
    best, least = np.zeros(x.shape[1]), float(yw @ yw)
    for size in range(1, x.shape[1] + 1):
        for support in combinations(range(x.shape[1]), size):
            part = xw[:, support]
            found, *_ = np.linalg.lstsq(part, yw, rcond=None)
            if (found < 0).any():
                continue
            error = float(((part @ found - yw) ** 2).sum())
            if error < least - 1e-12:
                best, least = np.zeros(x.shape[1]), error
                best[list(support)] = found
    return tuple(best.tolist())
