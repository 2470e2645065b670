"""The recogniser's twin: only one of the same training is a fair rival."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diastole.recipes import cache_aware_conformer as recipe
from diastole.reproduce.conformer_twin import alike, buffered, in_torch, seen
from diastole.types import UserError
from live import small
from recipes.test_live import corpus

FULL = replace(small.SIZES, rights=(recipe.FULL,))


def trained(out: Path, plan: recipe.Plan) -> Path:
    recipe.train(plan, out, corpus())
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"), recipe.Plan(1, batch=2, sizes=small.SIZES))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("twin"), recipe.Plan(1, batch=2, sizes=FULL))


def test_a_twin_of_the_same_training_is_taken(model: Path, twin: Path) -> None:
    alike(model, twin)


def test_a_missing_one_names_the_command_that_makes_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train cache-aware-conformer --full-context"):
        alike(model, tmp_path)


def test_one_of_another_training_is_refused_by_what_differs(model: Path, tmp_path: Path) -> None:
    trained(tmp_path, recipe.Plan(2, batch=2, sizes=replace(FULL, inner=32)))
    with pytest.raises(UserError, match=r"steps = 2, not 1, inner = 32, not 64"):
        alike(model, tmp_path)


def test_a_buffer_that_holds_all_is_the_whole(twin: Path) -> None:
    net = in_torch(twin)
    mel = np.random.default_rng(0).standard_normal((1, 8 * 10, small.SIZES.bands), np.float32)
    whole = seen(net, mel)
    assert whole.shape == (10, small.SIZES.width)
    np.testing.assert_array_equal(buffered(net, mel, left=12, right=9), whole)
    parts = buffered(net, mel, left=4, right=1)  # chunks of two behind four
    assert parts.shape == whole.shape
    with torch.no_grad():
        last = net.encode(torch.from_numpy(mel[:, 8 * 4 :]), recipe.FULL)[0].numpy()
    np.testing.assert_array_equal(parts[-2:], last[-2:])
