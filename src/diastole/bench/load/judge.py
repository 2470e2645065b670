"""What a run is worth: which requests were answered as promised, and how long all had to wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from diastole.bench.load.drive import Run, Timeline
from diastole.types import SLO, UserError

STALL = 5.0  # times the median gap: from there on a gap is a generation stall
LATE = 0.01  # seconds; a request that was sent later than that was late by the generator's fault


def ttft(t: Timeline) -> float:
    """Time to the first token, in seconds from the request's arrival; there must be one."""
    return t.times[0] - t.arrival


def tpot(t: Timeline) -> float:
    """Time per output token after the first, in seconds: (last - first) / (n - 1); 0 where there is only one."""
    return (t.times[-1] - t.times[0]) / (t.tokens - 1) if t.tokens > 1 else 0.0


def gaps(t: Timeline) -> list[float]:
    """Inter-token latencies (ITL): seconds between one piece of output and the next."""
    return [b - a for a, b in pairwise(t.times)]


class Spread(NamedTuple):
    """Seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """With linear interpolation; None of nothing."""
        return cls(*(float(x) for x in np.percentile(values, (50, 90, 99)))) if values else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run. Shares are of all requests, those that failed among them; latencies are of those that were answered."""

    requests: int
    good: int  # answered, and every promise kept
    failures: Mapping[str, int]  # by reason
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    seconds: float
    goodput: float  # good requests per second
    served: float  # answered requests per second
    tokens_per_second: float
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    whole: Spread | None  # from arrival to the last token
    stalls: int
    longest_gap: float
    cached: float  # share of the prompts' tokens that a prefix cache had, where it is told
    late: int  # sent late by the generator itself
    most_late: float  # seconds
    guessed: int  # answers whose tokens are counted by pieces, since the server does not tell
    ttfts: tuple[float, ...] = ()  # each, ascending
    tpots: tuple[float, ...] = ()


def judge(run: Run, slo: SLO) -> Verdict:
    """Attainment is joint: a request is good if it was answered to its end, its first token came within ``slo.first``
    and its further ones took ``slo.gap`` each on average (DistServe, arXiv 2401.09670, section 2)."""
    n = len(run.timelines)
    answered = [t for t in run.timelines if t.error is None and t.times]
    first = [ttft(t) <= slo.first for t in answered]
    rest = [tpot(t) <= slo.gap for t in answered]
    good = sum(a and b for a, b in zip(first, rest, strict=True))
    between = [g for t in run.timelines for g in gaps(t)]
    seconds = max(run.seconds, 1e-9)
    return Verdict(
        requests=n,
        good=good,
        failures=Counter(t.error or "no token came" for t in run.timelines if t.error is not None or not t.times),
        attainment=good / max(n, 1),
        ttft_attainment=sum(first) / max(n, 1),
        tpot_attainment=sum(rest) / max(n, 1),
        seconds=run.seconds,
        goodput=good / seconds,
        served=len(answered) / seconds,
        tokens_per_second=sum(t.tokens for t in run.timelines) / seconds,
        ttft=Spread.of([ttft(t) for t in answered]),
        tpot=Spread.of([tpot(t) for t in answered]),
        itl=Spread.of(between),
        whole=Spread.of([t.times[-1] - t.arrival for t in answered]),
        stalls=stalls(between),
        longest_gap=max(between, default=0.0),
        cached=sum(t.cached for t in answered) / max(sum(t.prompt for t in answered), 1),
        late=sum(t.late > LATE for t in run.timelines),
        most_late=max((t.late for t in run.timelines), default=0.0),
        guessed=sum(not t.told for t in answered),
        ttfts=tuple(sorted(map(ttft, answered))),
        tpots=tuple(sorted(map(tpot, answered))),
    )


def stalls(between: Sequence[float]) -> int:
    """Generation stalls: gaps of more than ``STALL`` times the median gap."""
    return int((np.asarray(between) > STALL * np.median(between)).sum()) if between else 0


# ---- capacity


class Attained(Protocol):
    """What was found at one rate."""

    @property
    def attainment(self) -> float: ...


A = TypeVar("A", bound=Attained)


@dataclass(frozen=True, slots=True)
class Capacity(Generic[A]):
    """The highest rate that was found to be good enough.

    Attributes:
        rate: per second; None: not even the lowest rate was.
        open: the highest rate that was to be tried was good enough too: the capacity lies above it.
        points: all that was measured, by rate.
    """

    rate: float | None
    open: bool
    points: dict[float, A]

    def words(self, wanted: float) -> str:
        """One sentence."""
        if self.rate is None:
            lowest = min(self.points)
            return f"even {lowest:.3g} requests/s were answered in time by {self.points[lowest].attainment:.0%} only"
        at_least = "at least " if self.open else ""
        return f"{at_least}{self.rate:.3g} requests/s with {wanted:.0%} in time"


def capacity(
    run: Callable[[float], A], attainment: float = 0.9, low: float = 0.1, high: float = 100.0, tolerance: float = 0.05
) -> Capacity[A]:
    """Bisect for the highest rate whose attainment is at least the wanted one.

    Args:
        run: measures at a rate.
        low: the first rate; it is doubled until one fails or ``high`` is reached.
        tolerance: between the best good and the lowest bad rate, as a share of the former.

    Raises:
        UserError: a bound makes no sense.
    """
    return capacities(lambda rate: {"": run(rate)}, ("",), attainment, low, high, tolerance)[""]


def capacities(
    run: Callable[[float], Mapping[str, A]],
    names: Sequence[str],
    attainment: float = 0.9,
    low: float = 0.1,
    high: float = 100.0,
    tolerance: float = 0.05,
) -> dict[str, Capacity[A]]:
    """The same for several that are measured together: each is measured at every rate that any of them needs."""
    if not (0 < low <= high and 0 < tolerance < 1 and 0 < attainment <= 1):
        message = "a capacity needs 0 < low <= high, a tolerance between 0 and 1 and an attainment above 0 and up to 1"
        raise UserError(message, param="rate")
    points: dict[str, dict[float, A]] = {name: {} for name in names}
    while rates := [r for name in names if (r := _next(points[name], attainment, low, high, tolerance)) is not None]:
        rate = min(rates)
        for name, found in run(rate).items():
            points[name][rate] = found
    return {name: _found(points[name], attainment, high) for name in names}


def _next(points: Mapping[float, Attained], wanted: float, low: float, high: float, tolerance: float) -> float | None:
    """The rate to be measured next; None: all is known."""
    if not points:
        return low
    good, bad = _bracket(points, wanted)
    if good is None or good >= high:
        return None
    if bad is None:
        return min(2 * good, high)
    return (good + bad) / 2 if bad - good > tolerance * good else None


def _bracket(points: Mapping[float, Attained], wanted: float) -> tuple[float | None, float | None]:
    """The best good rate and the lowest bad one above it. Where noise makes a rate good beyond a bad one, it does not
    count."""
    bad = min((r for r, p in points.items() if p.attainment < wanted), default=None)
    return max((r for r in points if bad is None or r < bad), default=None), bad


def _found(points: dict[float, A], wanted: float, high: float) -> Capacity[A]:
    good, bad = _bracket(points, wanted)
    return Capacity(good, bad is None and good is not None and good >= high, dict(sorted(points.items())))
