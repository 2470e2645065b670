"""The study of Step-3's attentions: what it needs, and losses that are torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diastole.kernels.table import load
from diastole.recipes import layerskip
from diastole.recipes import mfa as recipe
from diastole.reproduce import step_3_attentions as attentions
from diastole.reproduce.study import Study
from diastole.types import UserError
from diastole.weights import open_checkpoint


def test_models_that_are_missing_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="diastole train mfa --kinds gqa --seed 0"):
        attentions.models(Study())
    assert {p.kind for p in attentions.models(Study(quick=True))} == set(recipe.KINDS)


@pytest.mark.parametrize("kind", [attentions.BASE, attentions.OURS])
def test_the_engine_judges_as_the_recipe_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {
        "code": Path(__file__).read_text("utf-8") * 4,
        "arithmetic": layerskip.arithmetic(0, 20_000),
    }
    monkeypatch.setattr(recipe, "texts", lambda seed: said)
    shape = replace(recipe.shape(kind, vocab=512, layers=2, context=64), hidden=64, inner=64)
    plan = recipe.Plan(kind, shape, steps=4, tokens=512)
    recipe.train(plan, tmp_path, lambda p: None)
    judged = attentions._judged(plan, tmp_path, load(1))
    checkpoint, kept = open_checkpoint(tmp_path), recipe.build(shape)  # as it was written, in bfloat16
    kept.load_state_dict(
        {n.removeprefix("model."): torch.from_numpy(checkpoint.f32(n).copy()) for n in checkpoint.names()}
    )
    _, apart = recipe.data(plan, tmp_path, fresh=False)
    for name, ids in apart.items():
        np.testing.assert_allclose(judged.windows[name], recipe.judged(kept, ids), atol=1e-4)
    every = np.concatenate([recipe.judged(kept, ids) for ids in apart.values()])
    np.testing.assert_allclose(judged.loss, every.mean(), atol=1e-4)
