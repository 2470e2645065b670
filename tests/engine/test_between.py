"""What is done between steps is reckoned with, by whoever must not be late behind one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from diastole.clock import FakeClock
from diastole.engine.compose import Mixed
from diastole.engine.engine import AWAY
from diastole.slots import CostModel
from diastole.types import SLO, Ask, Grant
from engine.toy import request, toy_engine, toy_service


class Listening(Mixed):
    """Remembers for how long steps could go on, and how long they may."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(48)
        self.clock = clock
        self.seconds: list[tuple[float, float]] = []

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        self.seconds.append((min(a.due for a in asks) - self.clock.now(), seconds))
        return super().compose(asks, seconds, cost)


@pytest.mark.parametrize("between", [0.0, 0.004, AWAY + 0.01])
def test_a_step_leaves_time_for_what_is_done_before_the_next(between: float) -> None:
    clock = FakeClock()
    service = toy_service()
    service.compose = heard = Listening(clock)
    engine = toy_engine(service, clock=clock)
    engine.add(replace(request("a", [1, 2, 3], most=8, ignore_eos=True), slo=SLO(10.0, 10.0)))
    while engine.busy:
        engine.step()
        clock.advance(between)
    kept = between if between < AWAY else 0.0  # longer: the engine's owner was elsewhere
    for bound, seconds in heard.seconds[1:]:
        assert seconds == pytest.approx(bound - kept)
    assert len(heard.seconds) > 5
