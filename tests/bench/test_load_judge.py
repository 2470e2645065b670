"""The judge on timelines made by hand, and the search on a made-up curve."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from diastole.bench.load.arrivals import Closed, Plan
from diastole.bench.load.drive import Run, Tell, Timeline, nobody
from diastole.bench.load.judge import Capacity, Spread, capacities, capacity, judge, stalls, tpot, ttft
from diastole.bench.load.match import Match, unloaded
from diastole.bench.load.report import Found, as_json, as_table, conclusions, lines, promises
from diastole.bench.load.traces import Recorded
from diastole.bench.load.work import Load, Wish
from diastole.bench.longtext import Corpus
from diastole.types import SLO, UserError


def said(arrival: float, *times: float, tokens: int = 0, **more: object) -> Timeline:
    return Timeline(arrival, times=list(times), tokens=tokens or len(times), prompt=10, **more)  # type: ignore[arg-type]


def test_times_of_one_request() -> None:
    t = said(1.0, 1.5, 1.6, 1.9)
    assert (ttft(t), tpot(t)) == pytest.approx((0.5, 0.2))
    assert tpot(said(0.0, 3.0)) == 0
    assert tpot(said(0.0, 1.0, 2.0, tokens=6)) == pytest.approx(0.2)  # two pieces of several tokens


RUN = Run(
    [
        said(0.0, 0.1, 0.2, 0.3, cached=5),  # good
        said(0.0, 0.9, 1.0),  # its first token is late
        said(1.0, 1.1, 2.1),  # its second is
        said(1.0, 1.9, 2.9),  # both are
        said(2.0, 2.05),  # good, one token
        Timeline(3.0, error="refused: 429"),
        said(3.0, 3.1, error="the answer broke off"),
        Timeline(3.0, late=0.5),
    ],
    4.0,
)


def test_attainment_is_joint_and_of_all_requests() -> None:
    v = judge(RUN, SLO(0.5, 0.2))
    assert (v.requests, v.good) == (8, 2)
    assert (v.attainment, v.ttft_attainment, v.tpot_attainment) == (2 / 8, 3 / 8, 3 / 8)
    assert (v.goodput, v.served, v.tokens_per_second) == pytest.approx((0.5, 5 / 4, 11 / 4))
    assert v.failures == {"refused: 429": 1, "the answer broke off": 1, "no token came": 1}
    assert v.ttfts == pytest.approx((0.05, 0.1, 0.1, 0.9, 0.9))
    assert v.ttft is not None
    assert v.ttft.p50 == pytest.approx(0.1)
    assert v.whole is not None
    assert v.whole.p50 == pytest.approx(1.0)
    assert (v.late, v.most_late, v.cached) == (1, 0.5, 5 / 50)


def test_promises_are_kept_to_the_very_time() -> None:
    run = Run([said(0.0, 0.5, 0.75)], 1.0)
    assert judge(run, SLO(0.5, 0.25)).good == 1
    assert judge(run, SLO(0.4999, 0.25)).good == 0
    assert judge(run, SLO(0.5, 0.2499)).good == 0


def test_nothing_is_judged_without_an_error() -> None:
    v = judge(Run([], 0.0), SLO())
    assert (v.requests, v.attainment, v.goodput, v.ttft, v.itl, v.stalls) == (0, 0, 0, None, None, 0)


def test_percentiles() -> None:
    assert Spread.of([float(i) for i in range(101)]) == (50, 90, 99)
    assert Spread.of([]) is None


def test_stalls_are_gaps_of_five_medians() -> None:
    assert stalls([0.01] * 20 + [0.05, 0.0501, 1.0]) == 2
    assert stalls([]) == 0


# ---- capacity


@dataclass(frozen=True)
class Point:
    attainment: float


def curve(rate: float, knee: float) -> Point:
    return Point(1.0 if rate <= knee else 0.5)


@pytest.mark.parametrize("knee", [0.1, 0.13, 0.2, 1.0, 3.3, 7.9, 12.0])
def test_the_knee_is_found(knee: float) -> None:
    asked: list[float] = []

    def run(rate: float) -> Point:
        asked.append(rate)
        return curve(rate, knee)

    found = capacity(run, 0.9, 0.1, 16.0, 0.05)
    assert found.rate is not None
    assert found.rate <= knee < found.rate * 1.05 + 1e-9
    assert asked[:2] == [0.1, 0.2]
    assert len(set(asked)) == len(asked) < 15
    assert sorted(asked) == list(found.points)
    assert not found.open
    assert "in time" in found.words(0.9)


def test_bounds_of_the_search() -> None:
    low = capacity(lambda r: curve(r, 0.05), 0.9, 0.1, 16.0)
    assert (low.rate, [*low.points]) == (None, [0.1])
    assert low.words(0.9) == "even 0.1 requests/s were answered in time by 50% only"
    high = capacity(lambda r: curve(r, 99.0), 0.9, 0.1, 0.3)
    assert (high.rate, high.open, [*high.points]) == (0.3, True, [0.1, 0.2, 0.3])
    assert high.words(0.9).startswith("at least 0.3 requests/s")
    for wrong in ({"low": 0.0}, {"low": 2.0, "high": 1.0}, {"tolerance": 0.0}, {"attainment": 1.1}):
        with pytest.raises(UserError, match="a capacity needs"):
            capacity(lambda r: curve(r, 1.0), **wrong)


def test_a_rate_beyond_a_bad_one_does_not_count() -> None:
    """Noise: 0.4 is bad and 0.8, which another needed, is good."""
    noisy = {0.1: 1.0, 0.2: 1.0, 0.4: 0.0, 0.8: 1.0}
    both = capacities(
        lambda r: {"noisy": Point(noisy.get(r, 0.0)), "fine": curve(r, 0.9)}, ("noisy", "fine"), low=0.1, high=5.0
    )
    assert both["noisy"].rate == 0.2
    assert both["fine"].rate == pytest.approx(0.9, rel=0.05)
    assert [*both["noisy"].points] == [*both["fine"].points]  # all are measured at every rate


# ---- taking turns, and telling


class Steady:
    """Answers each request after so many seconds, a token after the other, whoever else is there."""

    def __init__(self, first: float, gap: float, log: list[str], name: str) -> None:
        self.first, self.gap, self.log, self.name = first, gap, log, name

    def run(self, wishes: list[Wish], plan: Plan, slo: SLO | None = None, tell: Tell = nobody) -> Run:
        self.log.append(self.name)
        tell(len(wishes))
        timelines = [
            said(float(i), *(i + self.first + self.gap * k for k in range(w.output))) for i, w in enumerate(wishes)
        ]
        return Run(timelines, float(len(wishes)))


class Mute:
    def run(self, wishes: list[Wish], plan: Plan, slo: SLO | None = None, tell: Tell = nobody) -> Run:
        return Run([Timeline(0.0, error="refused: 401 no key") for _ in wishes], 1.0)


NOBODY = None
LOAD = Load("made up", (Recorded(0.0, 20, 32), Recorded(0.0, 30, 40)), Corpus("c", NOBODY, list(range(999))), 0, 500)  # type: ignore[arg-type]


def test_an_unloaded_request_makes_the_promise() -> None:
    alone = unloaded(Steady(0.5, 0.1, [], ""), LOAD)  # type: ignore[arg-type]
    assert (alone.ttft, alone.tpot, alone.whole) == pytest.approx((0.5, 0.1, 0.5 + 35 * 0.1))
    assert alone.promise(None, None) == SLO(pytest.approx(2.5), pytest.approx(0.5))
    assert alone.promise(1.0, None) == SLO(1.0, pytest.approx(0.5))
    with pytest.raises(UserError, match="refused: 401 no key"):
        unloaded(Mute(), LOAD)  # type: ignore[arg-type]


def test_targets_take_turns_and_all_is_told() -> None:
    log: list[str] = []
    targets = {"a": Steady(0.5, 0.1, log, "a"), "b": Steady(0.7, 0.1, log, "b")}
    slo = SLO(0.6, 0.2)
    match = Match(targets, LOAD, lambda level: Closed(round(level)), slo)  # type: ignore[arg-type]
    found = Found(LOAD, "poisson", "requests/s", slo, unloaded(targets["a"], LOAD), 0.9)  # type: ignore[arg-type]
    log.clear()
    for level in (1.0, 2.0, 3.0):
        found.levels[level] = match.at(level)
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert {n: v.attainment for n, v in found.levels[2.0].items()} == {"a": 1.0, "b": 0.0}
    found.capacities = {
        n: Capacity(2.0 if n == "a" else 1.0, False, {level: row[n] for level, row in found.levels.items()})
        for n in targets
    }
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert [(p["rate"], p["name"], p["good"]) for p in told["points"]][:2] == [(1.0, "a", 2), (1.0, "b", 0)]
    assert told["points"][0]["ttft"]["p50"] == pytest.approx(0.5)
    assert told["capacity"]["a"]["rate"] == 2.0
    words = list(conclusions(found))
    assert words[0] == "a: 2 requests/s with 90% in time"
    assert words[1] == "b: 1 requests/s with 90% in time (0.50 x the first)"
    assert words[2].startswith("note: at the highest rate arrivals lasted 0.7 s")
    assert as_table(found).row_count == 6
    assert promises(found, (True, False)) == (
        "promises: TTFT 600.0 ms (as given; unloaded 500.00 ms), TPOT 200.0 ms (2 x unloaded; unloaded 100.00 ms)"
    )
    drawn = list(lines(found))
    assert {line.title for line in drawn} == {"in time", "goodput", "TTFT at 2 requests/s", "TPOT at 2 requests/s"}
    assert drawn[0].y == (100.0, 100.0, 100.0)
