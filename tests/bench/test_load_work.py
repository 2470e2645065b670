"""Loads: right lengths, shared beginnings, the same for the same seed; and arrivals at the rate that is asked."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from diastole.bench.load.arrivals import Closed, Gamma, Open, Poisson, Rescaled, named
from diastole.bench.load.traces import Recorded, Trace
from diastole.bench.load.work import Lengths, Load, Sizes, lognormal, mixed, recorded
from diastole.bench.longtext import Corpus
from diastole.types import UserError

NOBODY: Any = None
CORPUS = Corpus("made up", NOBODY, list(range(40_000)))
ROOM = 2048
SIZES = Sizes(Lengths(160, 600), Lengths(80, 200))


def trace(*rows: Recorded, block: int = 512) -> Trace:
    return Trace("t", "mooncake", rows, block=block)


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


SHARED = trace(
    Recorded(0.0, 1200, 10, (5, 6, 7)),
    Recorded(1.0, 1400, 20, (5, 6, 8)),
    Recorded(1.5, 1000, 30, (5, 9)),
    Recorded(9.0, 300, 40, (4,)),
)


@pytest.mark.parametrize("scale", [1.0, 0.37, 0.05, 1.3])
def test_the_same_blocks_are_the_same_tokens(scale: float) -> None:
    load = recorded(SHARED, CORPUS, 4, 10_000, scale)
    a, b, c, d = load.wishes()
    for wish, row in zip((a, b, c, d), SHARED.rows, strict=True):
        assert (len(wish.prompt), wish.output) == (round(row.prompt * scale), max(round(row.output * scale), 1))
    assert common(a.prompt, b.prompt) == round(1024 * scale)
    assert common(a.prompt, c.prompt) == common(b.prompt, c.prompt) == round(512 * scale)
    assert common(a.prompt, d.prompt) == 0
    total = sum(len(w.prompt) for w in (a, b, c, d))
    assert load.shared == pytest.approx((round(1024 * scale) + round(512 * scale)) / total)


def test_another_turn_shares_nothing_with_the_first() -> None:
    load = recorded(SHARED, CORPUS, 4, ROOM)
    one, other = load.wishes(0), load.wishes(1)
    assert one == load.wishes(0) == recorded(SHARED, CORPUS, 4, ROOM).wishes(0)
    assert [common(a.prompt, b.prompt) for a, b in zip(one, other, strict=True)] == [0] * 4
    assert [len(w.prompt) for w in one] == [len(w.prompt) for w in other]
    assert common(other[0].prompt, other[1].prompt) == 1024
    assert recorded(SHARED, CORPUS, 4, ROOM, seed=1).wishes() != one


def test_what_is_too_long_is_clipped_and_counted() -> None:
    load = recorded(SHARED, CORPUS, 4, 1024)
    assert [(r.prompt, r.output) for r in load.rows] == [(1014, 10), (1004, 20), (994, 30), (300, 40)]
    assert load.clipped == 3
    assert "3 clipped" in load.words()
    a, b, *_ = load.wishes()
    assert common(a.prompt, b.prompt) == 1004  # what is cut is the end
    greedy = recorded(trace(Recorded(0, 10, 900)), CORPUS, 1, 100)
    assert (greedy.rows[0].prompt, greedy.rows[0].output, greedy.clipped) == (10, 50, 1)


def test_rows_are_taken_in_a_row_from_a_place_that_the_seed_chooses() -> None:
    many = trace(*(Recorded(float(i), i + 1, 1) for i in range(1000)))
    firsts = set()
    for seed in range(5):
        rows = recorded(many, CORPUS, 10, ROOM, seed=seed).rows
        assert [r.at for r in rows] == list(range(10))
        assert [b.prompt - a.prompt for a, b in pairwise(rows)] == [1] * 9
        firsts.add(rows[0].prompt)
    assert len(firsts) == 5
    with pytest.raises(UserError, match="has 1000 requests, not 1001"):
        recorded(many, CORPUS, 1001, ROOM)
    for scale in (0.0, math.nan, 17.0):
        with pytest.raises(UserError, match="scale must be"):
            recorded(many, CORPUS, 1, ROOM, scale)


def test_drawn_lengths_have_the_percentiles_that_were_asked() -> None:
    load = lognormal(SIZES, CORPUS, 4000, 100_000)
    for which, want in (("prompt", SIZES.prompt), ("output", SIZES.output)):
        found = np.percentile([getattr(r, which) for r in load.rows], (50, 90))
        assert found == pytest.approx(want, rel=0.08)
    assert load.rows == lognormal(SIZES, CORPUS, 4000, 100_000).rows
    assert load.rows != lognormal(SIZES, CORPUS, 4000, 100_000, 1).rows
    assert {r.prompt for r in lognormal(Sizes(Lengths(7, 7), Lengths(3, 3)), CORPUS, 9, 99).rows} == {7}


def test_a_mixture_has_its_share_of_long_prompts() -> None:
    chats, long = Sizes(Lengths(10, 20), Lengths(5, 9)), Sizes(Lengths(5000, 5000), Lengths(5, 9))
    load = mixed(chats, long, 0.25, CORPUS, 40, 10_000)
    at = [i for i, r in enumerate(load.rows) if r.prompt == 5000]
    assert len(at) == 10
    assert at != list(range(10))
    assert [len(w.prompt) for w in load.wishes()] == [r.prompt for r in load.rows]
    with pytest.raises(UserError, match="share"):
        mixed(chats, long, 1.5, CORPUS, 40, 10_000)


def test_typical_requests_have_the_median_length() -> None:
    load = Load("", (Recorded(0, 10, 4), Recorded(0, 30, 8), Recorded(0, 70, 100)), CORPUS, 0, 100)
    assert [(len(w.prompt), w.output) for w in load.typical(2, 3)] == [(30, 8)] * 2
    assert [(len(w.prompt), w.output) for w in load.typical(1, 90)] == [(30, 50)]
    a, b = load.typical(2, 3)
    assert a.prompt != b.prompt


def test_a_text_longer_than_the_corpus_is_made_of_pieces() -> None:
    small = Corpus("small", NOBODY, list(range(50)))
    load = Load("", (Recorded(0, 333, 4),), small, 0, 500)
    assert len(load.wishes()[0].prompt) == 333


@pytest.mark.parametrize(
    "text", ["", "1", "1:2", "1:2/3", "2:1/3:4", "0:5/1:1", "1:2/3:4/5:6", "a:b/c:d", "-1:2/3:4", "1:2/3:9999999"]
)
def test_wrong_lengths(text: str) -> None:
    with pytest.raises(UserError, match="--lengths must be median:p90/median:p90"):
        Sizes.parse("lengths", text)


def test_lengths_are_written_as_they_are_read() -> None:
    assert str(Sizes.parse("lengths", "160:600/80:200")) == "160:600/80:200"


# ---- arrivals


@pytest.mark.parametrize("arrivals", [Poisson(), Gamma(0.3), Gamma(1.0), Gamma(8.0)])
def test_rates_are_kept_and_patterns_only_scaled(arrivals: Poisson | Gamma) -> None:
    times = arrivals.times(20_000, 5.0, 3)
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000, rel=0.1)
    assert arrivals.times(20_000, 10.0, 3) == pytest.approx([t / 2 for t in times])
    gaps = np.diff(times)
    shape = getattr(arrivals, "shape", 1.0)
    assert gaps.std() / gaps.mean() == pytest.approx(shape**-0.5, rel=0.05)  # of a gamma distribution


def test_recorded_times_are_brought_to_a_rate() -> None:
    assert Rescaled([3.0, 4.0, 4.0, 7.0]).times(4, 2.0, 0) == pytest.approx([0, 0.375, 0.375, 1.5])
    assert Rescaled([3.0]).times(1, 2.0, 0) == [0]
    with pytest.raises(UserError, match="at the same time"):
        Rescaled([3.0, 3.0]).times(2, 2.0, 0)


def test_ways_of_arriving_by_name() -> None:
    assert named("poisson") == Poisson()
    assert named("gamma:0.5") == Gamma(0.5)
    assert named("gamma:0.5").name == "gamma:0.5"
    assert named("recorded", [0.0, 1.0]).name == "recorded"
    with pytest.raises(UserError, match="needs a --trace"):
        named("recorded")
    for wrong in ("", "gamma", "gamma:", "gamma:0", "gamma:nan", "gamma:x", "poisson:2", "uniform"):
        with pytest.raises(UserError, match="--arrivals must be"):
            named(wrong)


def test_plans() -> None:
    assert [Open([0.0, 2.0]).due(i, 99, 1.0) for i in range(2)] == [0.0, 2.0]
    assert [Closed(2).due(5, running, 1.5) for running in (0, 1, 2)] == [1.5, 1.5, math.inf]
