"""The recipe of four attentions that keep equally much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.quality import logits_of
from diastole.kernels.table import load
from diastole.models import llama, step3
from diastole.nn.linear import Loader
from diastole.types import UserError
from diastole.weights import open_checkpoint

pytest.importorskip("torch")
from diastole.recipes import layerskip
from diastole.recipes import mfa as recipe


@pytest.fixture
def small(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe, on little text."""
    said = {
        "code": (Path(__file__).read_text("utf-8")) * 2,
        "documentation": "A stream knows tokens and has absorbed some of them; a step absorbs the rest. " * 200,
        "arithmetic": layerskip.arithmetic(0, 20_000),
    }
    monkeypatch.setattr(recipe, "texts", lambda seed: said)
    return recipe


def plan(kind: str, steps: int) -> Any:
    """Two layers; heads as they are."""
    made = replace(recipe.shape(kind, vocab=512, layers=2, context=128), hidden=64, inner=64)
    return recipe.Plan(kind, made, steps=steps, tokens=512)


def test_all_kinds_keep_as_much_and_have_as_many_weights(torch: Any) -> None:
    shapes = {kind: recipe.shape(kind) for kind in recipe.KINDS}
    assert {s.attention.kv_values for s in shapes.values()} == {256}
    weights = {k: sum(p.numel() for p in recipe.build(s).parameters()) for k, s in shapes.items()}
    assert weights["mfa"] == 8 * (491_520 + 3 * 256 * 320 + 128 + 2 * 256) + 4096 * 256 + 256
    for kind, count in weights.items():  # the norm between MFA's matrices is 1,024 of them
        assert -1024 <= count - weights["mfa"] < 0.005 * weights["mfa"], kind
    flops = {kind: s.attention.flops for kind, s in shapes.items()}
    assert flops == {"mha": 4 * 2 * 64, "gqa": 4 * 8 * 64, "mqa": 4 * 8 * 128, "mfa": 4 * 8 * 128}
    with pytest.raises(UserError, match="there are mha, gqa, mqa, mfa"):
        recipe.shape("mla")


@pytest.mark.parametrize("kind", recipe.KINDS)
def test_twenty_steps(small: Any, tmp_path: Path, kind: str) -> None:
    """They lower the loss; what is saved, the engine's models read: with the logits of the one that was trained."""
    import torch

    told: list[Any] = []
    figures = small.train(plan(kind, 20), tmp_path, told.append, save_every=10)
    losses = [p.loss for p in told]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert set(figures["losses"]) == {"code", "documentation", "arithmetic"}
    assert figures["loss"] < np.log(512)
    assert figures["kept"] == 256

    checkpoint, ops = open_checkpoint(tmp_path), load(1)
    ids = np.random.default_rng(0).integers(0, 512, 100).astype(np.int32)
    module = step3 if kind == "mfa" else llama
    model = module.build(Loader(ops, checkpoint, "f32"), checkpoint.config)
    trained = small.build(plan(kind, 20).shape)
    state = {n.removeprefix("model."): torch.from_numpy(checkpoint.f32(n).copy()) for n in checkpoint.names()}
    trained.load_state_dict(state)
    with torch.no_grad():
        want = trained.logits(trained(torch.from_numpy(ids[None].astype(np.int64))))[0].numpy()
    for chunks in ((100,), (60, 1, 39)):
        np.testing.assert_allclose(logits_of(model, ops, ids, chunks=chunks), want, atol=1e-4)
    assert model.state_specs()["kv"].kv_heads * model.state_specs()["kv"].head_dim * 2 == figures["kept"]


def test_an_interrupted_training_goes_on(small: Any, tmp_path: Path) -> None:
    small.train(plan("mfa", 12), tmp_path / "whole", lambda p: None, save_every=5)

    class Interrupted(Exception):
        pass

    def until(p: Any) -> None:
        if p.step == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        small.train(plan("mfa", 12), tmp_path / "torn", until, save_every=5)
    small.train(plan("mfa", 12), tmp_path / "torn", lambda p: None, save_every=5)
    whole, torn = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "torn"))
    assert whole == torn
    with pytest.raises(UserError, match="another plan"):
        small.train(plan("mqa", 12), tmp_path / "torn", lambda p: None)


def test_all_kinds_see_the_same_text(small: Any, tmp_path: Path) -> None:
    one, other = plan("mha", 5), plan("mfa", 5)
    taught, _ = small.data(one, tmp_path, fresh=True)
    for step in range(3):
        np.testing.assert_array_equal(small.batch(step, one, taught), small.batch(step, other, taught))
    assert not np.array_equal(small.batch(0, one, taught), small.batch(0, replace(one, seed=1), taught))


def test_what_is_missing_or_of_another_training_is_told(small: Any, tmp_path: Path) -> None:
    wanted = plan("gqa", 5)
    at = small.place(tmp_path, wanted)
    with pytest.raises(UserError, match="diastole train mfa --kinds gqa --seed 0"):
        small.expect(wanted, at)
    small.train(wanted, at, lambda p: None)
    small.expect(wanted, at)
    with pytest.raises(UserError, match=r"trained otherwise \(steps = 5, not 6\)"):
        small.expect(replace(wanted, steps=6), at)
    (at / "mfa.json").write_text("{")
    with pytest.raises(UserError, match="there is no model"):
        small.expect(wanted, at)
