"""The reproduction of KV prediction: what it cuts, what it takes as equally fast, what it judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diastole import papers
from diastole.reproduce import harness
from diastole.reproduce import kv_prediction as reproduction
from diastole.reproduce.kv_prediction_prompts import as_fast, divergence, losses, recent, scattered
from diastole.reproduce.study import Study
from diastole.types import UserError
from models.common import embedded


def test_prompts_are_cut() -> None:
    ids = np.arange(100, dtype=np.int32)
    some = scattered(20, 0)(ids)
    assert len(some) == len(set(some.tolist())) == 20
    assert some[:4].tolist() == [0, 1, 2, 3]
    assert some[-1] == 99
    assert (np.diff(some) > 0).all()
    assert recent(20)(ids).tolist() == [0, 1, 2, 3, *range(84, 100)]
    for cut in (scattered(100, 0), recent(200)):
        assert cut(ids).tolist() == ids.tolist()


def test_tokens_that_are_read_in_that_time() -> None:
    times = {100: 1.0, 200: 2.0, 400: 6.0}
    assert [as_fast(s, times) for s in (0.1, 1.5, 4.0, 9.0)] == [100, 150, 300, 400]
    assert as_fast(1.5, {10: 1.0, 20: 0.9, 30: 2.0}) == 25  # what a longer one took less is noise


def test_losses_and_divergences() -> None:
    logits = np.array([[0.0, np.log(3.0)], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(losses(logits, np.array([1, 0])), [np.log(4 / 3), np.log(2)], rtol=1e-6)
    assert divergence(logits[0], logits[0] + 5) == pytest.approx(0, abs=1e-6)
    want = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert divergence(logits[0], logits[1]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("told", "holds"), [(3.0, [True, True, True]), (5.5, [False, False, True])])
def test_what_is_judged(told: float, holds: list[bool]) -> None:
    nats = {reproduction.BASE: 2.0, reproduction.TOLD: told, reproduction.PRUNED: 5.0, reproduction.DROPPED: 3.5}
    found = reproduction.Found()
    for n in (256, 1024):
        found.nats[n], found.kept[n], found.divergence[n] = nats, n // 3, 0.5
        found.seconds[n] = {reproduction.BASE: n / 100, reproduction.TOLD: n / 300}
    study = Study()
    reproduction.judge(study, found)
    assert [c.main.holds for c in study.checks] == holds
    assert [len(row) for row in study.tables[0].rows] == [9, 9]


def test_it_is_found_by_its_name() -> None:
    paper = papers.find("kv-prediction")
    found = harness.load(paper)
    assert paper.id.split()[-1] in found.about
    assert found.run is reproduction.run


@pytest.mark.model
def test_without_maps_it_says_how_to_make_them(tmp_path: Path) -> None:
    embedded()
    with pytest.raises(UserError, match="make one with: diastole train kv-prediction"):
        reproduction.run(Study(quick=True), str(tmp_path / "none"))
