"""When requests come: an open load, whose arrivals wait for nobody, or a closed one of so many clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diastole.bench.arrivals import poisson
from diastole.types import UserError

SHAPES = (0.01, 1000.0)


class Arrivals(Protocol):
    """A way of arriving."""

    @property
    def name(self) -> str: ...

    def times(self, count: int, rate: float, seed: int) -> list[float]:
        """Of ``count`` requests, in seconds, ascending; the first at 0, ``rate`` per second on average. The same seed
        gives the same pattern at every rate, faster or slower."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent of each other."""

    name: str = "poisson"

    def times(self, count: int, rate: float, seed: int) -> list[float]:
        return poisson(count, rate, seed)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps of a gamma distribution of this shape: 1 is Poisson, less comes in bursts, more is more even. vLLM's
    ``--burstiness``."""

    shape: float

    @property
    def name(self) -> str:
        return f"gamma:{self.shape:g}"

    def times(self, count: int, rate: float, seed: int) -> list[float]:
        gaps = np.random.default_rng(seed).gamma(self.shape, 1 / (self.shape * rate), count)
        return [float(t) for t in np.cumsum(gaps) - gaps[0]]


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Recorded times, stretched or squeezed to a rate.

    Args:
        at: seconds, ascending.
    """

    at: Sequence[float]
    name: str = "recorded"

    def times(self, count: int, rate: float, seed: int) -> list[float]:
        """Raises:
        UserError: they were all recorded at once, and no rate can be made of that.
        """
        at = self.at[:count]
        span = at[-1] - at[0]
        if len(at) > 1 and span <= 0:
            message = f"all {len(at)} requests were recorded at the same time: ask for more of them, or for poisson"
            raise UserError(message, param="arrivals")
        factor = (len(at) - 1) / rate / span if span else 0.0
        return [(t - at[0]) * factor for t in at]


def named(text: str, at: Sequence[float] | None = None) -> Arrivals:
    """Arrivals as users write them: "poisson", "gamma:SHAPE" or "recorded".

    Args:
        at: what was recorded; None: nothing was.

    Raises:
        UserError: there is no such way, or nothing was recorded.
    """
    kind, _, knob = text.partition(":")
    if text == "poisson":
        return Poisson()
    if text == "recorded":
        if at is None:
            raise UserError("--arrivals recorded needs a --trace with times in it", param="arrivals")
        return Rescaled(at)
    try:
        shape = float(knob) if kind == "gamma" else math.nan
    except ValueError:
        shape = math.nan
    if not SHAPES[0] <= shape <= SHAPES[1]:
        raise UserError(
            f"--arrivals must be poisson, gamma:SHAPE with a shape from {SHAPES[0]:g} to {SHAPES[1]:g}, or recorded, "
            f"not {text!r:.40}",
            param="arrivals",
        )
    return Gamma(shape)


# ---- plans: what a driver asks


class Plan(Protocol):
    """Says when each request is to be sent."""

    def due(self, nth: int, running: int, now: float) -> float:
        """When request ``nth`` is to be sent, in seconds from the start; infinite: not before another one has ended.

        Args:
            running: requests that were sent and have not ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class Open:
    """At these times, whatever has been answered by then."""

    times: Sequence[float]

    def due(self, nth: int, running: int, now: float) -> float:
        return self.times[nth]


@dataclass(frozen=True, slots=True)
class Closed:
    """Clients that send their next request when the last one was answered."""

    clients: int

    def due(self, nth: int, running: int, now: float) -> float:
        return now if running < self.clients else math.inf
