"""Fit: DistServe's latency model from measured iterations, by least squares on the relative error (section 6 of the
published simulator's method): short iterations count as much as long ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diastole.engine.cost import non_negative_fit
from diastole.sim.latency import Decode, Line, Prefill
from diastole.types import UserError

UNKNOWNS = 3  # of each fit: fewer samples say nothing
SCALE = np.array([1.0, 1e3, 1e6])  # tokens in thousands, squares in millions: the columns are of one size


class PrefillSample(NamedTuple):
    """A measured batch of prompts."""

    lengths: Sequence[int]
    seconds: float


class DecodeSample(NamedTuple):
    """A measured step."""

    context: int  # tokens in the caches of all streams
    streams: int
    seconds: float


def fit_prefill(samples: Sequence[PrefillSample]) -> Prefill:
    """Non-negative coefficients.

    Raises:
        UserError: fewer than three samples, or one is not above 0 seconds and finite.
    """
    _check("prefill", [s.seconds for s in samples])
    x = np.array([[1.0, sum(s.lengths), sum(n * n for n in s.lengths)] for s in samples]) / SCALE
    found = np.array(non_negative_fit(x, np.array([s.seconds for s in samples]))) / SCALE
    return Prefill(*found.tolist())


def fit_decode(samples: Sequence[DecodeSample], bound: int = 95) -> Decode:
    """One line below ``bound`` streams and one from there on; where a side has too few samples, one line for both.

    Raises:
        UserError: fewer than three samples, or one is not above 0 seconds and finite.
    """
    _check("decode", [s.seconds for s in samples])
    few = [s for s in samples if s.streams < bound]
    many = [s for s in samples if s.streams >= bound]
    if min(len(few), len(many)) < UNKNOWNS:
        line = _line(samples)
        return Decode(line, line, bound)
    return Decode(_line(few), _line(many), bound)


def worst_error(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """The largest relative error of predictions."""
    return max(abs(p / m - 1) for m, p in zip(measured, predicted, strict=True))


def _line(samples: Sequence[DecodeSample]) -> Line:
    scale = np.array([1.0, 1e3, 1.0])
    x = np.array([[1.0, s.context, s.streams] for s in samples]) / scale
    found = np.array(non_negative_fit(x, np.array([s.seconds for s in samples]))) / scale
    return Line(*found.tolist())


def _check(what: str, seconds: Sequence[float]) -> None:
    if len(seconds) < UNKNOWNS:
        raise UserError(f"a fit of {what} needs at least {UNKNOWNS} samples, not {len(seconds)}", param="samples")
    for s in seconds:
        if not (math.isfinite(s) and s > 0):
            raise UserError(f"a sample of {what} must take more than 0 seconds, not {s}", param="samples")
