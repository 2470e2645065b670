"""The promise for the whole: a request whose time is up ends, whatever it does at that moment, and nobody else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diastole.clock import FakeClock
from diastole.engine.deadlines import SLACK, Deadlines
from diastole.engine.engine import Engine
from diastole.live import LiveParams
from diastole.params import PoolParams
from diastole.types import SLO, Ended, Event, Request
from engine.test_live import live_service
from engine.toy import assert_clean, expected, request, run, texts, toy_engine, toy_service

FOREVER = 900
LATE = Ended("deadline")


def timed(id: str, total: float | None, most: int = FOREVER, **params: object) -> Request:
    wish = request(id, [ord(id[0]) % 97, 2, 3], most, ignore_eos=True, **params)
    return replace(wish, slo=SLO(total=total))


def ends(events: list[Event]) -> dict[str, list[tuple[object, float]]]:
    told: dict[str, list[tuple[object, float]]] = {}
    for e in events:
        if e.final:
            told.setdefault(e.id, []).append((e.data if isinstance(e.data, Ended) else e.data.finish, e.at))
    return told


def spoken(events: list[Event]) -> dict[tuple[str, int], list[int]]:
    return texts([e for e in events if not isinstance(e.data, Ended)])


def test_it_ends_with_what_it_has_after_the_step_in_which_time_ran_out() -> None:
    service = toy_service()
    engine = toy_engine(service)
    engine.add(timed("a", 0.5))
    engine.add(timed("b", None, most=60))
    events = run(engine)
    assert [why for why, _ in ends(events)["a"]] == [LATE]
    assert 0.5 <= ends(events)["a"][0][1] < 0.5 + 0.02  # a step of these two takes 12 ms
    said = spoken(events)
    assert 10 < len(said["a", 0]) < FOREVER
    assert said["a", 0] == expected([0, 2, 3], len(said["a", 0]), frozenset())
    assert said["b", 0] == expected([1, 2, 3], 60, frozenset())
    assert service.meter.finished == {"deadline": 1, "length": 1}
    assert service.meter.missed == {"total": 1}
    assert service.meter.counters["slo_attained"] == 1
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0


def test_all_choices_end_and_those_not_yet_born_never_are() -> None:
    engine = toy_engine(toy_service(cap=16))
    engine.add(timed("a", 0.3, n=3))
    long = request("b", [5] * 700, n=3)
    engine.add(replace(long, slo=SLO(total=0.05)))
    events = run(engine)
    assert [why for why, _ in ends(events)["a"]] == [LATE] * 3
    assert [why for why, _ in ends(events)["b"]] == [LATE]  # still reading: it has one stream
    assert not [e for e in events if e.id == "b" and not e.final]


def test_those_who_wait_and_those_who_are_parked_end_too() -> None:
    service = toy_service(pages=6, most=4)
    engine = toy_engine(service)
    parked: set[str] = set()
    for i in range(6):
        engine.add(timed(f"{i}", 2.0, most=300))
    events: list[Event] = []
    while engine.clock.now() < 1.99:
        events += engine.step() or []
        parked |= {s.req.id for s in service.ledger.waiting if s.emitted_at is not None}
    waiting = {s.req.id for s in service.ledger.waiting}
    assert waiting, "nobody waits: the test shows nothing"
    assert parked, "nobody was preempted: the test shows nothing"
    events += run(engine)
    told = ends(events)
    assert all([why for why, _ in told[id]] == [LATE] for id in waiting)
    assert all(2.0 <= at < 2.1 for id in waiting for _, at in told[id])
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0


def test_who_ends_in_time_is_let_be_and_an_id_may_come_again() -> None:
    service = toy_service()
    engine = toy_engine(service)
    engine.add(timed("a", 1.0, most=4))
    assert [why for why, _ in ends(run(engine))["a"]] == ["length"]
    assert isinstance(engine.clock, FakeClock)
    engine.add(timed("a", None, most=200))
    assert [why for why, _ in ends(run(engine))["a"]] == ["length"]  # past the first one's deadline
    assert engine.clock.now() > 1.0
    assert service.meter.missed == {}
    assert math.isinf(engine.next_deadline)


def test_readers_end_too() -> None:
    engine = toy_engine(toy_service(cap=16))
    engine.add(Request("a", "lm", tuple([5] * 700), PoolParams(), SLO(total=0.1)))
    (event,) = run(engine)
    assert (event.data, event.speaks, event.final) == (LATE, False, True)


def test_a_live_stream_that_idles_ends_although_nothing_runs() -> None:
    clock = FakeClock()
    service = live_service()
    engine = Engine([service], clock, toy_engine(toy_service()).dispatch)
    engine.add(Request("a", service.name, None, LiveParams(), SLO(total=3.0)))
    assert engine.step() is None
    assert engine.next_deadline == 3.0
    clock.advance(3.0)
    assert [e.data for e in engine.step() or []] == [LATE]
    assert engine.step() is None
    assert not engine.busy


@pytest.mark.parametrize("seed", range(4))
def test_deadlines_are_told_once_in_their_order_and_the_heap_stays_small(seed: int) -> None:
    rng = np.random.default_rng(seed)
    deadlines, living, told, now = Deadlines(), dict[str, float](), list[float](), 0.0
    for i in range(3_000):
        total = float(rng.exponential(50)) if rng.random() < 0.9 else None
        deadlines.add(Request(f"r{i}", "lm", (), None, SLO(total=total), arrival=now))
        if total is not None:
            living[f"r{i}"] = now + total
        now += float(rng.exponential(1))
        due = sorted((at, id) for id, at in living.items() if at <= now)
        assert deadlines.passed(now) == [id for _, id in due]
        told += [at for at, _ in due]
        for _, id in due:
            del living[id]
        for id in [id for id in living if rng.random() < 0.05]:
            del living[id]
            deadlines.discard(id)
        assert len(deadlines) <= 2 * len(living) + SLACK + 1
        assert deadlines.next > now
    assert told == sorted(told)
    assert len(told) > 100
