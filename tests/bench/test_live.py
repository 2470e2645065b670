"""Live frames beside long prompts, on a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest

from diastole import registry
from diastole.bench.live import GAP, NAME, PERIOD, Crowd, Heard, live_service
from diastole.clock import FakeClock
from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.slots import Facts
from engine.toy import assert_clean, toy_service

SECONDS = 6.0


def heard(streams: int, use: str = "") -> tuple[Heard, Engine]:
    clock = FakeClock()
    text, live = toy_service(pages=64, cap=512, prefix=False), live_service(8)
    text.cost, live.cost = LinearCost(0.003, 0.0008), LinearCost(0.002, 0.0005)
    if use:
        text.compose = registry.build([use], {}, Facts(frozenset())).compose
    engine = Engine([text, live], clock, LeastSlack(), Simulated(clock))
    crowd = Crowd(engine, "lm", [j % 40 + 8 for j in range(900)], streams)
    crowd._rng = Small()  # type: ignore[assignment]
    return crowd.run(SECONDS), engine


class Small(np.random.Generator):
    """Tokens that the toy's vocabulary has."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(1))

    def integers(self, low: int, high: int | None = None) -> int:  # type: ignore[override]
        return int(super().integers(8, 60))


def test_every_frame_is_answered_in_time_beside_long_prompts() -> None:
    found, engine = heard(3)
    assert len(found.delays) >= 3 * (SECONDS / PERIOD - 2)
    assert max(found.delays) <= GAP + 1e-9
    assert found.kept == 1.0
    assert found.prompts > 900
    assert found.said > 64
    assert not engine.busy
    for service in engine.services:
        if service.name != NAME:
            assert_clean(service)


def test_frames_that_are_due_together_are_reckoned_with_together() -> None:
    """Eight streams' frames take 6 ms in one step, and 2.5 ms alone: time is kept free for all of them."""
    found, _ = heard(8)
    assert found.kept == 1.0


def test_prompts_that_run_as_they_come_make_frames_late() -> None:
    found, _ = heard(3, "orca")
    assert found.kept < 0.9
    assert max(found.delays) > 0.5  # a prompt of 900 tokens takes 0.72 s


def test_the_language_model_keeps_the_time_that_frames_leave() -> None:
    alone, _ = heard(0)
    beside, _ = heard(3)
    assert alone.delays == []
    assert np.isnan(alone.kept)
    left = 1 - beside.frames / beside.seconds
    assert beside.tokens / (alone.tokens * left) == pytest.approx(1.0, abs=0.15)
