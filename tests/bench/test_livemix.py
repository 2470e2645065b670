"""Streams of real models, mixed, beside a toy language model on a simulated clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diastole import registry
from diastole.bench import livemix
from diastole.bench.firstcome import FirstCome
from diastole.clock import FakeClock
from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.slots import Dispatcher, Facts
from engine.toy import assert_clean, toy_service
from live.test_parity import model_of


def mixed(tmp_path: Path, dispatch: Dispatcher, monkeypatch: pytest.MonkeyPatch, load: float, use: str = "") -> Any:
    """Six streams of two models beside prompts of 900 tokens, which take 0.72 s if they run whole."""
    clock = FakeClock()
    text = toy_service(pages=64, cap=512, prefix=False)
    text.cost = LinearCost(0.003, 0.0008)
    if use:
        text.compose = registry.build([use], {}, Facts(frozenset())).compose
    engine = Engine([text], clock, dispatch, Simulated(clock))
    models = {kind: model_of(kind, tmp_path / kind) for kind in ("conformer", "classifier")}
    monkeypatch.setattr(livemix, "rehearse", lambda *args: None)
    livemix.add(engine, models, 6)
    for service in engine.services[1:]:
        service.cost = LinearCost(0.002, 0.0005)
    monkeypatch.setattr(livemix.np.random, "default_rng", Small)
    found = livemix.run(engine, "lm", [j % 40 + 8 for j in range(900)], models, 6, 6.0, load, wait=clock.advance)
    assert not engine.busy
    assert_clean(text)
    return found


class Small(livemix.np.random.Generator):
    """Tokens that the toy's vocabulary has."""

    def __init__(self, seed: int) -> None:
        super().__init__(livemix.np.random.PCG64(seed))

    def integers(self, low: int, high: int | None = None) -> int:  # type: ignore[override]
        return int(super().integers(8, 60))


def test_all_chunks_are_answered_in_time_beside_long_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mixed(tmp_path, LeastSlack(), monkeypatch, 0.7)
    assert found.share == 1.0
    for kept in found.models.values():
        assert kept.streams == 3
        assert kept.chunks >= 3 * (6.0 / kept.period - 3)
    assert found.tokens > 900
    assert 0.5 < found.busy / found.seconds < 0.9


def test_first_come_first_served_makes_them_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mixed(tmp_path, FirstCome(), monkeypatch, 0.7, "orca")
    assert found.share < 0.95


def test_a_model_without_load_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mixed(tmp_path, LeastSlack(), monkeypatch, 0.0)
    assert (found.busy, found.tokens, found.share) == (0.0, 0, 1.0)
