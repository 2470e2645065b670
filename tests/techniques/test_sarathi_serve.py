"""Sarathi-Serve and its rivals: who runs in which step, on a clock that only the cost model moves."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole import registry
from diastole.engine.cost import LinearCost
from diastole.slots import Composer, Facts
from diastole.techniques.sarathi_serve import MOST, TILE, Shrinking
from diastole.types import Ask, Event, Grant, Request, Stream, UserError
from engine.toy import assert_clean, expected, request, texts, toy_engine, toy_service
from techniques import owed

RIVALS = ("prefill-first:tokens=200", "decode-first", "orca", "orca:tokens=200", "chunked-prefills:chunk=32")
ALL = ("sarathi-serve:chunk=48", "sarathi-serve:chunk=0,tbt_ms=60", "sarathi-serve:chunk=300,low=32,high=96", *RIVALS)
COST = LinearCost(0.010, 0.001, per_kilowork=0.01)


def composer(use: str, streams: int = 16) -> Any:
    return registry.build([use], {}, Facts(frozenset(), streams=streams)).compose


def ask(serial: int, left: int, emits: bool, done: int = 0, due: float = 9.0, hi: int = 0) -> Ask:
    stream = Stream(Request(str(serial), "lm", (), None), 0, done + left, done, serial=serial)
    return Ask(stream, 1, hi or left, due, emits)


def by_serial(grants: Sequence[Grant]) -> dict[int, int]:
    return {g.stream.serial: g.n for g in grants}


# ---- what Sarathi-Serve grants

crowds = st.lists(
    st.tuples(st.booleans(), st.integers(2, 3000), st.integers(0, 3000), st.floats(0, 10)), min_size=1, max_size=24
)


@given(crowds, st.integers(16, 600), st.sampled_from([math.inf, 0.03, 0.2]))
def test_streams_that_decode_are_never_cut_and_the_rest_stays_within_the_budget(
    crowd: list[tuple[bool, int, int, float]], chunk: int, seconds: float
) -> None:
    asks = [ask(i, 1 if emits else left, emits, done, due) for i, (emits, left, done, due) in enumerate(crowd)]
    decoding = [a for a in asks if a.emits]
    grants = composer(f"sarathi-serve:chunk={chunk}").compose(asks, seconds, COST)
    granted = by_serial(grants)
    assert grants
    assert len(granted) == len(grants)
    assert all(granted.get(a.stream.serial) == 1 for a in decoding)
    assert all(1 <= granted[a.stream.serial] <= a.hi for a in asks if a.stream.serial in granted)
    slices = [g for g in grants if g.stream.left > 1]
    if slices:
        assert sum(g.n for g in grants) <= max(chunk, 1)
    if decoding and slices:
        assert COST.predict(grants) <= seconds
    # in order of arrival: who is left out came after all who are in, and only the last may be cut by the budget
    out = [a.stream.serial for a in asks if not a.emits and a.stream.serial not in granted]
    assert not slices or not out or max(g.stream.serial for g in slices) < min(out)
    assert all(g.n == g.stream.left for g in slices[:-1])


def test_a_crowd_that_uses_up_the_budget_leaves_nothing_to_prompts() -> None:
    """The public code lets the rest become negative here."""
    asks = [*(ask(i, 1, True) for i in range(20)), ask(20, 500, False)]
    grants = composer("sarathi-serve:chunk=16").compose(asks, math.inf, COST)
    assert by_serial(grants) == dict.fromkeys(range(20), 1)


def test_guesses_give_way_to_the_limit_and_streams_do_not() -> None:
    asks = [Ask(ask(i, 1, True).stream, 1, 9, 9.0, True) for i in range(4)]
    policy = composer("sarathi-serve:chunk=300,tbt_ms=20")
    assert by_serial(policy.compose(asks, math.inf, COST)) == dict.fromkeys(range(4), 1)
    assert by_serial(policy.compose(asks, math.inf, LinearCost(0.001, 0.0001))) == dict.fromkeys(range(4), 9)


def test_a_step_is_limited_by_time_only_while_somebody_decodes() -> None:
    policy = composer("sarathi-serve:chunk=400,tbt_ms=60")
    with_decode = policy.compose([ask(0, 1, True), ask(1, 1000, False)], math.inf, LinearCost(0.010, 0.001))
    assert by_serial(with_decode) == {0: 1, 1: 47}  # 10 + 48 ms, and 48 rows fill their tiles
    assert by_serial(policy.compose([ask(1, 1000, False)], math.inf, LinearCost(0.010, 0.001))) == {1: 400}


def test_a_limit_reckons_with_steps_that_take_longer_than_predicted() -> None:
    cost = LinearCost(0.010, 0.001)
    cost.worst = 1.5
    grants = composer("sarathi-serve:chunk=400,tbt_ms=60").compose([ask(0, 1, True), ask(1, 999, False)], 9.0, cost)
    assert by_serial(grants) == {0: 1, 1: 15}  # 40 ms: 30 rows, of which whole tiles are taken
    assert cost.predict(grants) * cost.worst <= 0.060


def test_cut_slices_fill_whole_tiles() -> None:
    grants = composer("sarathi-serve:chunk=100").compose([ask(0, 1, True), ask(1, 1000, False)], math.inf, COST)
    assert sum(g.n for g in grants) % TILE == 0


@pytest.mark.parametrize(("order", "first"), [("arrival", 0), ("due", 1), ("shortest", 2)])
def test_orders_of_prompts(order: str, first: int) -> None:
    asks = [ask(0, 300, False, due=5.0), ask(1, 400, False, due=1.0), ask(2, 200, False, due=7.0)]
    grants = composer(f"sarathi-serve:chunk=64,order={order}").compose(asks, math.inf, COST)
    assert by_serial(grants) == {first: 64}


def test_slices_shrink_in_stages() -> None:
    shrinking = Shrinking(64, 512, 8, 4096)
    sizes = [shrinking(done) for done in range(0, 9000, 256)]
    assert (sizes[0], sizes[-1], len(set(sizes))) == (512, 64, 8)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size % 32 == 0 for size in sizes)


# ---- what is found at start


def test_a_budget_is_found_from_a_time(caplog: pytest.LogCaptureFixture) -> None:
    policy = composer("sarathi-serve:chunk=0,tbt_ms=100")
    assert policy.chunk == MOST
    with caplog.at_level(logging.INFO, "diastole"):
        policy.settle(LinearCost(0.010, 0.001), 16, 2048)
    assert policy.chunk == 16 + 64  # 10 ms, 16 rows of streams, 74 left: four whole tiles
    assert "80 tokens a step within 100 ms" in caplog.text


def test_a_time_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes 11 ms here, and tbt_ms is 5"):
        composer("sarathi-serve:tbt_ms=5").settle(LinearCost(0.010, 0.001), 16, 2048)


@pytest.mark.parametrize(
    ("use", "named"),
    [
        ("sarathi-serve:chunk=0", "tbt_ms"),
        ("sarathi-serve:chunk=8", "max_streams = 16"),
        ("sarathi-serve:chunk=-5", "chunk"),
        ("sarathi-serve:tbt_ms=nan", "tbt_ms"),
        ("sarathi-serve:tbt_ms=-1", "tbt_ms"),
        ("sarathi-serve:order=fair", "order"),
        ("sarathi-serve:low=64", "high"),
        ("sarathi-serve:high=64", "low"),
        ("sarathi-serve:low=16,high=64", "low"),
        ("sarathi-serve:stages=0", "stages"),
        ("prefill-first:tokens=0", "tokens"),
        ("decode-first:tokens=0", "tokens"),
        ("orca:tokens=-1", "tokens"),
        ("chunked-prefills:chunk=0", "chunk"),
    ],
)
def test_wrong_knobs_are_named(use: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        composer(use)


def test_a_budget_below_a_page_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    composer("sarathi-serve:chunk=32")
    assert "less than a page" in caplog.text


# ---- what the rivals grant


def crowd() -> list[Ask]:
    return [ask(0, 1, True), ask(1, 150, False), ask(2, 1, True), ask(3, 100, False), ask(4, 700, False)]


@pytest.mark.parametrize(
    ("use", "first"),
    [
        ("prefill-first:tokens=200", {1: 150}),
        ("prefill-first:tokens=250", {1: 150, 3: 100}),
        ("decode-first", {0: 1, 2: 1}),
        ("orca", {0: 1, 2: 1, 1: 150, 3: 100, 4: 700}),
        ("orca:tokens=300", {0: 1, 2: 1, 1: 150, 3: 100}),
        ("chunked-prefills:chunk=200", {1: 150, 3: 50}),
    ],
)
def test_what_rivals_run_first(use: str, first: dict[int, int]) -> None:
    assert by_serial(composer(use).compose(crowd(), math.inf, COST)) == first


def test_prompts_that_are_longer_than_the_budget_run_alone() -> None:
    for use in ("prefill-first:tokens=200", "decode-first:tokens=200"):
        assert by_serial(composer(use).compose([ask(4, 700, False), ask(5, 10, False)], math.inf, COST)) == {4: 700}


def test_chunks_alone_take_turns_with_streams() -> None:
    policy = composer("chunked-prefills:chunk=64")
    kinds = ["prompt" if 1 in by_serial(policy.compose(crowd(), math.inf, COST)) else "streams" for _ in range(4)]
    assert kinds == ["prompt", "streams", "prompt", "streams"]
    assert by_serial(policy.compose([ask(0, 1, True)], math.inf, COST)) == {0: 1}


# ---- whole lives


def served(policy: Composer, prompts: Sequence[int], most: int = 12, gap: float = 0.02) -> tuple[list[Event], Any]:
    """Prompts of these lengths arrive ``gap`` seconds after one another on a simulated clock."""
    service = toy_service(pages=120, context=1024)
    service.compose = policy
    service.cost = LinearCost(0.010, 0.001)
    engine = toy_engine(service)
    clock: Any = engine.clock
    events: list[Event] = []
    waiting = [(i * gap, i, n) for i, n in enumerate(prompts)]
    while waiting or engine.busy:
        while waiting and (waiting[0][0] <= clock.now() or not engine.busy):
            at, i, n = waiting.pop(0)
            clock.advance(max(at - clock.now(), 0))
            engine.add(request(str(i), [(i + j) % 50 + 8 for j in range(n)], most, ignore_eos=True))
        events += engine.step() or []
    assert_clean(service)
    return events, engine


@pytest.mark.parametrize("use", ALL)
def test_texts_are_the_same_under_every_scheduler(use: str) -> None:
    lengths = [40, 3, 300, 7, 64, 150]
    events, _ = served(composer(use), lengths)
    want = {(str(i), 0): expected([(i + j) % 50 + 8 for j in range(n)], 12, frozenset()) for i, n in enumerate(lengths)}
    assert texts(events) == want


def gaps(events: Sequence[Event]) -> list[float]:
    """Between the tokens of each stream, in seconds."""
    at: dict[str, list[float]] = {}
    for e in events:
        at.setdefault(e.id, []).append(e.at)
    return [float(g) for times in at.values() for g in np.diff(times)]


def test_nobody_pauses_for_a_long_prompt() -> None:
    """One prompt of 800 tokens among streams that talk: 0.81 s in one, at most 60 ms beside them."""
    lengths = [20, 20, 20, 800, 20]
    paused = {use: max(gaps(served(composer(use), lengths, most=30)[0])) for use in ALL}
    assert paused["sarathi-serve:chunk=48"] <= 0.010 + 0.048 + 1e-9
    assert paused["sarathi-serve:chunk=0,tbt_ms=60"] <= 0.060
    assert min(paused["prefill-first:tokens=200"], paused["orca"]) > 0.8
    assert paused["decode-first"] <= 0.015


def test_the_whole_takes_no_longer_than_whole_prompts_first() -> None:
    lengths = [20, 20, 200, 20, 300, 20]
    took = {
        use: served(composer(use), lengths, most=20)[1].clock.now()
        for use in ("sarathi-serve:chunk=100", "prefill-first:tokens=2048", "chunked-prefills:chunk=100")
    }
    assert took["sarathi-serve:chunk=100"] <= took["prefill-first:tokens=2048"] * 1.05
    assert took["sarathi-serve:chunk=100"] < took["chunked-prefills:chunk=100"]


@pytest.mark.parametrize("use", ALL)
def test_abort_leaks_nothing(use: str) -> None:
    owed.abort_leaks_nothing(use, every=4)


@pytest.mark.parametrize("use", ["sarathi-serve:chunk=64", "sarathi-serve:chunk=0,tbt_ms=40", "chunked-prefills"])
def test_preemption_changes_nothing(use: str) -> None:
    owed.survives_preemption(use)


@pytest.mark.parametrize("use", ALL)
def test_identity_and_random_life(use: str) -> None:
    owed.same_as_plain(use)
    owed.random_life(use, seed=2)
