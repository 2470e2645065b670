"""Timelines: when a request came and when each of its tokens did, and how promises are judged by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from diastole.types import SLO


class Arrival(NamedTuple):
    """One request of a load."""

    at: float  # seconds
    prompt: int  # tokens
    output: int  # tokens, at least 1


class Timeline(NamedTuple):
    """What became of one, in seconds."""

    arrival: float
    times: Sequence[float]  # when each token was emitted, the first included

    @property
    def ttft(self) -> float:
        return self.times[0] - self.arrival

    @property
    def tpot(self) -> float:
        """Mean gap between tokens; 0 of a single token."""
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    @property
    def worst_gap(self) -> float:
        """The longest between two tokens: what a mean hides, such as a slow transfer behind the first."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)

    def keeps(self, slo: SLO) -> bool:
        """Whether it kept both promises."""
        return self.ttft <= slo.first and self.tpot <= slo.gap


def attainment(timelines: Sequence[Timeline], slo: SLO) -> float:
    """The share of requests that kept both promises, 0 to 1."""
    return sum(t.keeps(slo) for t in timelines) / len(timelines)


class Judge(Protocol):
    """Whether a load was served well enough."""

    @property
    def share(self) -> float:
        """Of requests that it asks for."""
        ...

    def __call__(self, timelines: Sequence[Timeline], slo: SLO) -> bool: ...


class Joint(NamedTuple):
    """So large a share of requests kept both promises at once: what a user sees (DistServe, section 6)."""

    share: float = 0.9

    def __call__(self, timelines: Sequence[Timeline], slo: SLO) -> bool:
        return attainment(timelines, slo) >= self.share


class Apart(NamedTuple):
    """So large a share kept each promise, whoever they are, and the time after the first token is divided by all tokens
    instead of by the gaps: as DistServe's published simulator judges. It is milder than ``Joint``."""

    share: float = 0.9

    def __call__(self, timelines: Sequence[Timeline], slo: SLO) -> bool:
        firsts = [t.ttft for t in timelines]
        per_token = [(t.times[-1] - t.times[0]) / len(t.times) for t in timelines]
        return quantile(firsts, self.share) < slo.first and quantile(per_token, self.share) < slo.gap


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is no quantile of nothing")
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
