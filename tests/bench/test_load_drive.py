"""An engine under a load on a fake clock: every time is known exactly. A step takes 10 ms and 1 ms per unit."""

from __future__ import annotations

from typing import Any

import pytest

from diastole.bench.load.arrivals import Closed, Open
from diastole.bench.load.drive import Local, Run
from diastole.bench.load.judge import gaps, judge, ttft
from diastole.bench.load.work import Wish
from diastole.clock import FakeClock
from diastole.engine.engine import Engine
from diastole.types import SLO, Batch
from engine.toy import ToyLM, assert_clean, toy_engine, toy_service


def engine_of(at: float = 0.0, **more: Any) -> tuple[Engine, FakeClock, Local]:
    clock = FakeClock(at)
    engine = toy_engine(toy_service(**more), clock=clock)
    return engine, clock, Local(engine, "lm", sleep=clock.advance)


def wish(prompt: int, output: int, begin: int = 1) -> Wish:
    return Wish([(begin + i) % 90 + 1 for i in range(prompt)], output)


def times(run: Run) -> list[float]:
    return [x for t in run.timelines for x in t.times]


def test_a_request_alone() -> None:
    engine, _, local = engine_of(at=1e6)
    run = local.run([wish(10, 3)], Open([0.0]))
    assert run.timelines[0].times == pytest.approx([0.020, 0.031, 0.042])
    assert (run.timelines[0].tokens, run.timelines[0].finish, run.timelines[0].error) == (3, "length", None)
    assert run.seconds == pytest.approx(0.042)
    assert_clean(engine.services[0])


def test_waiting_counts_from_when_a_request_was_due() -> None:
    _, _, local = engine_of()
    run = local.run([wish(10, 3), wish(20, 2, 40), wish(5, 1, 60)], Open([0.0, 0.005, 1.0]))
    first, second, third = run.timelines
    assert first.times == pytest.approx([0.020, 0.051, 0.063])  # its second step takes the other's 20 units in
    assert second.arrival == 0.005
    assert ttft(second) == pytest.approx(0.046)
    assert third.arrival == 1.0
    assert ttft(third) == pytest.approx(0.015)
    assert all(t.late == 0 for t in run.timelines)


def test_chunks_and_what_is_cached() -> None:
    _, _, local = engine_of(cap=40)
    run = local.run([wish(100, 1), wish(100, 1)], Open([0.0, 5.0]))
    assert ttft(run.timelines[0]) == pytest.approx(0.130)  # three steps
    assert (run.timelines[1].cached, run.timelines[1].prompt) == (64, 100)
    assert ttft(run.timelines[1]) == pytest.approx(0.046)
    assert judge(run, SLO(0.05, 1.0)).cached == 64 / 200


def test_arrivals_wait_for_nobody_and_clients_do() -> None:
    wishes = [wish(10, 3, i) for i in range(6)]
    _, _, local = engine_of()
    run = local.run(wishes, Open([0.0] * 6))
    assert run.timelines[5].arrival == 0
    assert run.timelines[0].times[0] == pytest.approx(0.058)  # the step's 48 units; the sixth has but part of its own
    _, _, local = engine_of()
    told: list[int] = []
    run = local.run(wishes, Closed(1), tell=told.append)
    assert [t.arrival for t in run.timelines] == pytest.approx([0.042 * i for i in range(6)])
    assert [ttft(t) for t in run.timelines] == pytest.approx([0.020] * 6)
    assert all(g == pytest.approx(0.011) for t in run.timelines for g in gaps(t))
    assert told[-1] == 6
    run = local.run(wishes, Closed(2))
    assert max(t.arrival for t in run.timelines[:2]) == 0
    assert run.timelines[2].arrival > 0


def test_the_same_engine_runs_one_load_after_the_other() -> None:
    _, clock, local = engine_of(prefix=False)
    one = local.run([wish(10, 3)], Open([0.0]))
    clock.advance(7.5)
    assert times(local.run([wish(10, 3)], Open([0.0]))) == pytest.approx(times(one))


def test_what_is_refused_or_given_up_is_no_crash() -> None:
    engine, clock, _ = engine_of()
    local = Local(engine, "lm", patience=0.5, sleep=clock.advance)
    run = local.run([wish(10, 900), wish(5000, 3), wish(10, 3, 50)], Open([0.0, 0.0, 0.1]))
    long, refused, good = run.timelines
    assert long.error == "it took more than 0.5 s"
    assert 30 < long.tokens < 60
    assert refused.error is not None
    assert refused.error.startswith("refused: the prompt has 5000 tokens")
    assert good.error is None
    v = judge(run, SLO(1.0, 1.0))
    assert (v.good, v.requests, sum(v.failures.values())) == (1, 3, 2)
    assert not engine.busy
    assert_clean(engine.services[0])


def test_an_engine_that_can_run_nobody_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, clock, _ = engine_of()
    local = Local(engine, "lm", patience=0.5, sleep=clock.advance)
    monkeypatch.setattr(engine, "step", lambda: None)
    run = local.run([wish(10, 3)], Open([0.0]))
    assert run.timelines[0].error == "it took more than 0.5 s"
    assert clock.now() == pytest.approx(0.5, abs=0.01)


def test_a_fault_of_one_request_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, local = engine_of()
    forward = ToyLM.forward

    def faulty(self: ToyLM, b: Batch, state: Any) -> Any:
        if 77 in b.inputs:
            raise RuntimeError("77")
        return forward(self, b, state)

    monkeypatch.setattr(ToyLM, "forward", faulty)
    run = local.run([Wish([77, 78], 3), wish(4, 1, 20)], Open([0.0, 0.0]))
    assert run.timelines[0].error == "the engine ended it: error"
    assert run.timelines[1].error is None


def test_what_goes_wrong_leaves_nobody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, local = engine_of()

    def broken(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_sleep", broken)
    with pytest.raises(KeyboardInterrupt):
        local.run([wish(10, 1), wish(10, 1)], Open([0.0, 9.0]))
    assert not engine.busy


def test_the_engine_hears_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, local = engine_of()
    heard = []
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda r: (heard.append(r.slo), add(r)))
    local.run([wish(10, 1)], Open([0.0]), SLO(0.3, 0.1))
    assert heard == [SLO(0.3, 0.1)]
