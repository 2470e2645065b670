"""Streams that go on in another engine: held after their first token, packed, taken over, released."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diastole.clock import FakeClock
from diastole.engine.engine import Engine
from diastole.engine.service import Service
from diastole.params import SamplingParams
from diastole.state.lease import Blob
from diastole.types import Request, UserError
from engine.toy import assert_clean, expected, request, run, texts, toy_engine, toy_service


def pair(**second: Any) -> tuple[Engine, Engine]:
    clock = FakeClock()
    return toy_engine(toy_service(), clock=clock), toy_engine(toy_service(**second), clock=clock)


def first_token(engine: Engine, wish: Request) -> list[int]:
    """Add it to be held, and run until it is."""
    engine.add(wish, hold=True)
    said: list[int] = []
    for _ in range(100):
        if wish.id in engine.services[0].ledger.held:
            return said
        said += [c.id for e in engine.step() or [] if e.id == wish.id for c in e.data.chosen]
    raise AssertionError("it was never held")


def move(source: Engine, target: Engine, wish: Request, said: list[int]) -> None:
    state = source.packed(wish.id)
    assert state is not None
    target.take_over(wish, said, 0.5, state)
    assert source.release(wish.id)


@pytest.mark.parametrize("length", [2, 63, 64, 65, 200])
@pytest.mark.parametrize("swap", [1 << 20, 0])  # without a shelf the state is computed again
def test_the_text_goes_on_as_it_would_have(length: int, swap: int) -> None:
    source, target = pair(swap=swap)
    prompt = [i % 40 + 8 for i in range(length)]
    wish = request("a", prompt, 12, ignore_eos=True)
    said = first_token(source, wish)
    assert len(said) == 1
    assert source.step() is None  # it waits
    move(source, target, wish, said)
    assert said + texts(run(target))["a", 0] == expected(prompt, 12, frozenset())
    assert not source.busy
    for engine in (source, target):
        assert_clean(engine.services[0])
    absorbed = target.services[0].meter.histograms["iteration_tokens"].sum
    assert absorbed == (11 if swap else length + 11)


def test_others_go_on_meanwhile_and_crowds_move() -> None:
    source, target = pair()
    rng = np.random.default_rng(3)
    wishes = [request(str(i), rng.integers(8, 90, int(rng.integers(3, 150))).tolist(), 9) for i in range(6)]
    told: dict[str, list[int]] = {w.id: [] for w in wishes}
    for wish in wishes:
        source.add(wish, hold=int(wish.id) % 2 == 0)
    moved: set[str] = set()
    for _ in range(300):
        for engine in (source, target):
            for event in engine.step() or []:
                told[event.id] += [c.id for c in event.data.chosen]
        for id in list(source.services[0].ledger.held):
            move(source, target, wishes[int(id)], list(told[id]))
            moved.add(id)
    assert not source.busy
    assert not target.busy
    assert told == {w.id: expected(w.inputs, 9) for w in wishes}
    assert moved <= {"0", "2", "4"}
    assert moved


def test_a_text_that_ends_with_its_first_token_is_not_held() -> None:
    source, _ = pair()
    source.add(request("a", [9, 10], 1), hold=True)
    assert texts(run(source)) == {("a", 0): expected([9, 10], 1)}
    assert_clean(source.services[0])


def test_what_is_held_can_be_aborted_and_runs_out_of_time() -> None:
    source, _ = pair()
    wish = request("a", [9] * 70, 8, ignore_eos=True)
    first_token(source, wish)
    assert source.abort("a")
    first_token(source, replace(wish, id="b", slo=replace(wish.slo, total=5.0)))
    assert source.next_deadline == pytest.approx(source.clock.now() + 5, abs=0.5)
    source.clock.advance(6)  # type: ignore[attr-defined]
    late = source.step() or []
    assert [e.data.finish for e in late] == ["deadline"]
    assert not source.busy
    assert_clean(source.services[0])
    assert source.packed("b") is None
    assert not source.release("b")


def test_what_a_text_said_elsewhere_is_read_and_not_said_again() -> None:
    engine, _ = pair()
    prompt = [9, 12, 14, 20]
    whole = expected(prompt, 10, frozenset())
    engine.add(request("a", prompt, 10, ignore_eos=True), said=whole[:4])
    assert texts(run(engine))["a", 0] == whole[4:]


def test_penalties_count_what_was_said_elsewhere() -> None:
    wish = Request("a", "lm", (9, 12, 14), SamplingParams(max_tokens=12, temperature=0, seed=0, repetition_penalty=1.9))
    alone, _ = pair()
    alone.add(wish)
    whole = texts(run(alone))["a", 0]
    source, target = pair()
    said = first_token(source, wish)
    move(source, target, wish, said)
    assert said + texts(run(target))["a", 0] == whole


def test_meters_see_one_request() -> None:
    source, target = pair()
    wish = request("a", [9] * 30, 8, ignore_eos=True)
    move(source, target, wish, first_token(source, wish))
    run(target)
    first, second = source.services[0].meter, target.services[0].meter
    assert first.counters["handed_over"] == 1
    assert not first.finished
    assert second.finished == {"length": 1}
    assert sum(first.histograms["time_to_first_token_seconds"].counts) == 1
    assert sum(second.histograms["time_to_first_token_seconds"].counts) == 0
    assert second.histograms["e2e_request_latency_seconds"].sum > 0.5  # with what it took elsewhere


# ---- what is refused


def state_of(service: Service, **change: Any) -> dict[str, Blob]:
    engine = toy_engine(service)
    wish = request("a", [9] * 70, 8, ignore_eos=True)
    first_token(engine, wish)
    state = dict(engine.packed("a") or {})
    state["kv"] = replace(state["kv"], **change)
    return state


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "other"},
        {"units": 71},
        {"units": 0},
        {"units": -1},
        {"units": 1 << 40},
        {"data": {}},
        {"data": {"pages": np.zeros((2, 64), np.int64)}},
        {"data": {"pages": np.zeros((2, 64), np.int32), "at": np.arange(2)}},
        {"data": {"pages": np.zeros((2, 63), np.int64), "at": np.arange(2)}},
        {"data": {"pages": np.zeros((3, 64), np.int64), "at": np.arange(3)}},
        {"data": {"pages": np.zeros((2, 64), np.int64), "at": np.array([0, 5])}},
    ],
)
def test_state_that_is_none_of_ours_is_refused(change: dict[str, Any]) -> None:
    state = state_of(toy_service(), **change)
    target = toy_engine(toy_service())
    with pytest.raises(UserError, match=r"state"):
        target.take_over(request("a", [9] * 70, 8, ignore_eos=True), [11], 0.0, state)
    assert not target.busy


def test_parts_that_nobody_keeps_are_refused() -> None:
    state = state_of(toy_service())
    target = toy_engine(toy_service())
    with pytest.raises(UserError, match="cell"):
        target.take_over(request("a", [9] * 70, 8), [11], 0.0, {**state, "cell": state["kv"]})


@pytest.mark.parametrize(
    ("said", "params", "match"),
    [([7], {}, "end"), ([11] * 8, {}, "end"), ([11, 97], {}, "vocabulary"), ([11], {"n": 2}, "one text")],
)
def test_texts_that_cannot_go_on_are_refused(said: list[int], params: dict[str, Any], match: str) -> None:
    engine = toy_engine(toy_service())
    with pytest.raises(UserError, match=match):
        engine.add(request("a", [9, 9], 8, **params), said=said)
    assert not engine.busy
