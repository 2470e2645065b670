"""The recall language and recipe: questions can be answered from the context alone, a training goes on where it
stopped, and its model runs on the engine with torch's own numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diastole.bench.longcontext import recall as language
from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.nn.tokens import tokenizer_of
from diastole.recipes import recall as recipe
from diastole.recipes.llama import Llama
from diastole.types import UserError

SMALL = replace(recipe.SHAPE, layers=2, inner=128, context=256)
PLAN = recipe.Plan(steps=20, tokens=2048, shape=SMALL)


def test_every_answer_stands_in_the_context_once() -> None:
    ids, places = language.examples(256, 8, np.random.default_rng(1))
    assert ids.min() >= 0
    assert ids.max() < len(language.WORDS)
    for row, at in zip(ids, places, strict=True):
        body = row[: at[0] - 1]
        for place in at:
            assert row[place - 1] == language.ASK
            (where,) = np.flatnonzero(body == row[place])
            assert body[where + 1] == row[place + 1]
            assert language.FIRST_VALUE <= row[place + 1] < language.FIRST_FILLER


def test_repeats_can_be_foretold_but_not_from_one_distance() -> None:
    ids, places = recipe.repeats(64, 50, np.random.default_rng(0))
    periods = set()
    for row in ids:
        period = next(p for p in range(1, 64) if (row[p:] == row[:-p]).all())
        periods.add(period)
        assert len(set(row[:period])) == period <= 32
    assert len(periods) > 10
    assert places[0][-1] + 1 == 63


def test_batches_grow_and_depend_on_seed_and_step_alone() -> None:
    plan = recipe.Plan(steps=1000)
    lengths = [recipe.batch(s, plan)[0].shape[1] for s in range(0, 1000, 25)]
    assert lengths == sorted(lengths)
    assert {64, 256, 2048} <= set(lengths)
    assert (recipe.batch(500, plan)[0] == recipe.batch(500, plan)[0]).all()
    assert (recipe.batch(500, plan)[0] != recipe.batch(501, plan)[0]).any()


def test_an_interrupted_training_goes_on_and_the_engine_runs_its_model(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    losses: list[float] = []
    recipe.train(PLAN, tmp_path / "whole", lambda p: losses.append(p.loss))
    assert np.mean(losses[:5]) > 1.05 * np.mean(losses[15:])

    def interrupted(p: recipe.Progress) -> None:
        if p.step == 12:
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        recipe.train(PLAN, out, interrupted, save_every=10)
    rest: list[int] = []
    figures = recipe.train(PLAN, out, lambda p: rest.append(p.step))
    assert rest == list(range(11, 21))
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert json.loads((out / "recall.json").read_text())["accuracy"].keys() == {"256"}
    assert figures["seconds"] > 0
    assert "Apache-2.0" in (out / "README.md").read_text()
    with pytest.raises(UserError, match="another plan"):
        recipe.train(replace(PLAN, seed=1), out, lambda p: None)
    _runs(out)


def _runs(out: Path) -> None:
    """The engine's logits are those of torch in float32, and the task's words are single tokens."""
    corpus = Corpus("none", tokenizer_of(out), [])
    assert corpus.encode("<ask> k3 v5 f7 nothing") == [
        language.ASK,
        language.FIRST_KEY + 3,
        language.FIRST_VALUE + 5,
        language.FIRST_FILLER + 7,
        language.UNKNOWN,
    ]
    (case,) = language.Recall().cases(corpus, 200, 1, 0)
    assert [q.label for q in case.questions] == [t for t in ("begin", "middle", "end") for _ in range(4)]
    for q in case.questions:
        where = case.context.index(q.given[-1])
        assert case.context[where + 1] == q.answer[0]
    model = Llama(SMALL)
    with Rig(str(out), kv="f32", weights="f32") as rig, rig.stream(case.context) as s:
        own = rig.absorb_all(s)
        weights = _weights(out)
        model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
        with torch.no_grad():
            want = model.logits(model(torch.tensor([case.context])))[0].numpy()
        assert np.abs(own - want).max() < 1e-3 * max(1, np.abs(want).max())


def _weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: v.float() for k, v in load_file(out / "model.safetensors").items()}


def test_the_task_is_for_this_language_only() -> None:
    from models.common import embedded, tokenizer

    embedded()
    with pytest.raises(UserError, match="train recall"):
        language.Recall().cases(Corpus("none", tokenizer(), []), 200, 1, 0)
