"""Admission by priority: who goes first, who may not wait for ever, and that texts stay what they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from diastole.clock import FakeClock
from diastole.engine.admission import ByPriority, InOrder
from diastole.engine.engine import Engine
from diastole.types import Event
from engine.toy import assert_clean, expected, request, run, texts, toy_engine, toy_service


def add(engine: Engine, id: str, priority: int, most: int = 4) -> None:
    engine.add(replace(request(id, [5, 6, 8], most=most, ignore_eos=True), priority=priority))


def ends(events: Sequence[Event]) -> list[str]:
    return [e.id for e in events if e.final]


def test_lower_goes_first_and_equals_in_order_of_arrival() -> None:
    wishes = [("a", 0), ("b", 5), ("c", -1), ("d", 0), ("e", -1), ("f", 5)]
    for policy, order in ((ByPriority(1e6), "ceadbf"), (InOrder(), "abcdef")):
        engine = toy_engine(toy_service(most=1, admission=policy))
        for id, priority in wishes:
            add(engine, id, priority)
        assert "".join(ends(run(engine))) == order


def test_who_runs_is_not_pushed_out() -> None:
    engine = toy_engine(toy_service(most=1, admission=ByPriority(1e6)))
    add(engine, "low", 9, most=8)
    events = list(engine.step() or [])
    add(engine, "high", -9)
    assert ends([*events, *run(engine)]) == ["low", "high"]


@pytest.mark.parametrize(("ageing", "served"), [(1.0, True), (1e6, False)])
def test_a_stream_that_waits_ages(ageing: float, served: bool) -> None:
    """While more urgent ones keep coming, one for each that ends."""
    clock = FakeClock()
    engine = toy_engine(toy_service(most=1, admission=ByPriority(ageing)), clock=clock)
    add(engine, "urgent-0", 0)
    add(engine, "patient", 10)
    done: list[str] = []
    for i in range(1, 200):
        add(engine, f"urgent-{i}", 0)
        while len(done) < i:
            done += ends(engine.step() or [])
        clock.advance(0.5)
    assert ("patient" in done) is served
    if served:
        waited = done.index("patient")
        assert 10 / 0.6 <= waited <= 13 / 0.5  # ten steps of a second, with about half a second for each before it


@pytest.mark.parametrize("seed", range(4))
def test_all_end_with_their_own_text_when_pages_are_short(seed: int) -> None:
    draw = random.Random(seed)
    service = toy_service(pages=6, most=4, admission=ByPriority(0.5))
    engine = toy_engine(service)
    wishes = {f"r{i}": [draw.randrange(8, 90) for _ in range(draw.randrange(1, 150))] for i in range(20)}
    events: list[Event] = []
    for id, prompt in wishes.items():
        engine.add(replace(request(id, prompt, most=60), priority=draw.randrange(-3, 4)))
        events += engine.step() or []
    events += run(engine)
    assert texts(events) == {(id, 0): expected(prompt, 60) for id, prompt in wishes.items()}
    assert_clean(service)
