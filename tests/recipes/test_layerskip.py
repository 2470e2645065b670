"""The recipe of a model whose layers can all be the last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.service import Service
from diastole.kernels.table import load
from diastole.nn.linear import Loader
from diastole.text import Tokenizer
from diastole.types import UserError
from diastole.weights import open_checkpoint
from techniques import owed

pytest.importorskip("torch")
from diastole.recipes import layerskip as recipe
from diastole.recipes.llama import Llama


@pytest.fixture
def small(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe of the small model, on little text."""
    said = {
        "code": (Path(__file__).read_text("utf-8")) * 2,
        "documentation": "A stream knows tokens and has absorbed some of them; a step absorbs the rest. " * 200,
        "arithmetic": recipe.arithmetic(0, 20_000),
    }
    monkeypatch.setattr(recipe, "texts", lambda seed: said)
    return recipe


def plan(recipe: Any, steps: int) -> Any:
    shape = replace(recipe.SHAPE, vocab=512, layers=6, hidden=64, inner=64, heads=2, kv_heads=1, context=256)
    return recipe.Plan(steps=steps, tokens=768, shape=shape)


def test_the_training(small: Any, tmp_path: Path) -> None:
    """Twenty steps lower both losses; one that was interrupted goes on as if it had not been; its model says on the
    engine with drafts what it says without."""
    told: list[Any] = []
    figures = small.train(plan(small, 20), tmp_path / "whole", told.append, save_every=10)
    for name in ("loss", "early"):
        values = [getattr(p, name) for p in told]
        assert np.mean(values[-3:]) < np.mean(values[:3]) - 0.05, name
    assert set(figures["agreement"]) == {"code", "documentation", "arithmetic"}
    assert all(len(of["exits"]) == 5 for of in figures["agreement"].values())

    class Interrupted(Exception):
        pass

    def until(p: Any) -> None:
        if p.step == 12:
            raise Interrupted

    with pytest.raises(Interrupted):
        small.train(plan(small, 20), tmp_path / "torn", until, save_every=10)
    small.train(plan(small, 20), tmp_path / "torn", lambda p: None, save_every=10)
    whole, torn = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "torn"))
    assert whole == torn
    with pytest.raises(UserError, match="another plan"):
        small.train(plan(small, 21), tmp_path / "torn", lambda p: None)
    serves(tmp_path / "whole")


def serves(path: Path) -> None:
    checkpoint = open_checkpoint(path)

    def service(*use: str) -> Service:
        settings = ServiceConfig(model=str(path), use=use, max_streams=4, context=256)
        return assemble("small", Loader(load(1), checkpoint, "bf16"), settings, frozenset(), 16 << 20, 0)

    reader = Tokenizer.from_directory(path)
    ids = reader.encode("Q: 5 then 7\n5 + 7 = 12\nA: 12\n", special=False)
    assert reader.decode(ids) == "Q: 5 then 7\n5 + 7 = 12\nA: 12\n"
    want = owed.alone(service(), ids, 60)
    for use in ("del:exits=1+3+5,cost=layers,rest=0", "del:controller=static,exits=3,length=4,rest=0", "del"):
        of = service(use)
        assert owed.alone(of, ids, 60) == want
    assert of.meter.counters["spec_decode_num_draft_tokens"] > 0


def test_the_losses(small: Any) -> None:
    skips = small.skips(12)
    assert skips[0] == 0
    assert skips[-1] == pytest.approx(small.DROP)
    assert skips == sorted(skips)
    seen = set()
    for step in range(small.TURNS):
        weights = small.weights(step, 12)
        assert sum(weights.values()) == pytest.approx(1)
        assert max(weights, key=lambda layer: weights[layer]) == 12
        early = [layer for layer in weights if layer < 12]
        assert [weights[layer] for layer in early] == sorted(weights[layer] for layer in early)
        seen |= set(early)
    assert seen == set(range(2, 12))


def test_layers_are_skipped_text_by_text(torch: Any, small: Any) -> None:
    model = Llama(plan(small, 1).shape)
    ids = torch.arange(60).view(3, 20)
    kept = np.ones((6, 3), bool)
    kept[2, 1] = kept[4] = False
    with torch.no_grad():
        whole, some = small.states(model, ids), small.states(model, ids, kept)
        torch.testing.assert_close(model.norm(whole[-1]), model(ids))
    torch.testing.assert_close(some[1], whole[1])
    torch.testing.assert_close(some[2][1], some[1][1])
    torch.testing.assert_close(some[2][[0, 2]], whole[2][[0, 2]])
    torch.testing.assert_close(some[4], some[3])


def test_sums_are_right(small: Any) -> None:
    lines = small.arithmetic(3, 5_000).splitlines()
    sums = [line for line in lines if "=" in line]
    assert len(sums) > 100
    assert all(eval(left) == int(total) for left, total in (line.split(" = ") for line in sums))
    assert small.arithmetic(3, 5_000) == small.arithmetic(3, 5_000) != small.arithmetic(4, 5_000)
