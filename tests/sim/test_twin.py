"""The twin takes the steps that the engine takes, and refuses costs that are no times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.clock import FakeClock
from diastole.engine.compose import Mixed
from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.params import SamplingParams
from diastole.sim import twin
from diastole.sim.load import LogNormal, poisson
from diastole.sim.timeline import Arrival
from diastole.slots import Composer, CostModel
from diastole.types import SLO, Ask, Grant, Request, UserError
from engine.toy import VOCAB, toy_service

Steps = list[tuple[float, list[tuple[str, int]]]]  # seconds, and what is granted to whom


class Recorded:
    """A composer that takes down when it granted what."""

    def __init__(self, inner: Composer) -> None:
        self.inner, self.steps = inner, []  # type: tuple[Composer, Steps]
        self.clock: FakeClock | None = None

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        grants = self.inner.compose(asks, seconds, cost)
        self.steps.append((seconds, [(g.stream.req.id, g.n) for g in grants]))
        return grants


def served_for_real(load: Sequence[Arrival], slo: SLO, pages: int, cap: int, most: int) -> tuple[Steps, list]:
    """A service whose model computes, on a fake clock: its prompts differ and its texts do too."""
    service = toy_service(pages, context=pages * 64, cap=cap, prefix=False, swap=0, most=most)
    recorded = Recorded(service.compose)
    service.compose = recorded
    clock = FakeClock()
    engine = Engine([service], clock, LeastSlack(), Simulated(clock))
    times: list[list[float]] = [[] for _ in load]
    waiting = list(enumerate(load))
    rng = np.random.default_rng(0)
    while waiting or engine.busy:
        if not engine.busy:
            clock.advance(max(waiting[0][1].at - clock.now(), 0.0))
        while waiting and waiting[0][1].at <= clock.now():
            i, a = waiting.pop(0)
            params = SamplingParams(max_tokens=a.output, temperature=0, seed=0, ignore_eos=True)
            engine.add(Request(str(i), "lm", tuple(rng.integers(0, VOCAB, a.prompt).tolist()), params, slo))
        for event in engine.step() or ():
            times[int(event.id)].append(event.at)
    return recorded.steps, times


loads = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.2]), st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=8
)


@given(loads, st.integers(3, 8), st.sampled_from([5, 48, 500]), st.sampled_from([0.05, 0.5, 1e9]))
@settings(max_examples=60, deadline=None)
def test_it_takes_the_steps_of_a_real_service(
    drawn: list[tuple[float, int, int]], pages: int, cap: int, promise: float
) -> None:
    at = np.cumsum([gap for gap, _, _ in drawn]).tolist()
    load = [Arrival(t, prompt, output) for t, (_, prompt, output) in zip(at, drawn, strict=True)]
    slo = SLO(promise, promise)
    steps, times = served_for_real(load, slo, pages, cap, most=4)
    recorded = Recorded(Mixed(cap))
    told = twin.simulate(load, twin.service(recorded, LinearCost(0.010, 0.001), 4, pages), slo=slo)
    assert recorded.steps == steps
    assert [list(t.times) for t in told] == times


def test_it_preempts_where_pages_run_out_and_leaks_none() -> None:
    served = twin.service(Mixed(64), LinearCost(0.010, 0.001), streams=8, pages=4)
    told = twin.simulate([Arrival(0.0, 60, 100)] * 3, served)
    assert served.meter.counters["preemptions"] > 0
    assert [len(t.times) for t in told] == [100] * 3
    assert served.pages() == (0, 4)


def test_thousands_of_requests_are_a_matter_of_seconds() -> None:
    load = poisson(LogNormal(100, 20).draw(2000, 0), 10.0, 0)
    steps = [0]
    told = twin.simulate(
        load,
        twin.service(Mixed(512), LinearCost(0.004, 0.0002), 64, 2000),
        stepped=lambda engine: steps.__setitem__(0, steps[0] + 1),
    )
    assert sum(len(t.times) for t in told) == sum(a.output for a in load)
    assert steps[0] < sum(a.output for a in load)  # streams share steps


def test_steps_may_take_longer_than_the_service_believes() -> None:
    load = [Arrival(0.0, 10, 5)]
    belief, truth = LinearCost(0.001, 0.0), LinearCost(1.0, 0.0)
    (told,) = twin.simulate(load, twin.service(Mixed(64), belief, 4, 4), truth=truth)
    assert told.times == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("base", [-1.0, float("nan"), float("inf")])
def test_costs_that_are_no_times_are_refused(base: float) -> None:
    with pytest.raises(UserError, match="at least 0 and finite") as e:
        twin.simulate([Arrival(0.0, 10, 5)], twin.service(Mixed(64), LinearCost(base, 0.0), 4, 4))
    assert e.value.param == "cost"


@pytest.mark.parametrize("load", [[Arrival(1.0, 5, 5), Arrival(0.5, 5, 5)], [Arrival(0.0, 0, 5)], [Arrival(0.0, 5, 0)]])
def test_loads_that_make_no_sense_are_refused(load: list[Arrival]) -> None:
    with pytest.raises(UserError, match="load"):
        twin.simulate(load, twin.service(Mixed(64), LinearCost(0.01, 0.0), 4, 4))


def test_a_request_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="context"):
        twin.simulate([Arrival(0.0, 1000, 5)], twin.service(Mixed(64), LinearCost(0.01, 0.0), 4, 4))
