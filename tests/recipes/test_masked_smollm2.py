"""The recipe of masked-smollm2, on a model of a few thousand weights: what is trained, written and served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.assets.models import open_model, tokenizer_of
from diastole.bench.filling import Writer
from diastole.params import SamplingParams, Unmasking
from diastole.recipes import masked_smollm2 as recipe
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.lora import adapt
from diastole.recipes.masked_lm import bytewise
from diastole.recipes.own_text import Texts

END = 256
PLAN = recipe.Plan(steps=30, tokens=400, rate=1e-2, rank=4, prompt=40, answer=12)


@pytest.fixture
def base(tmp_path: Path, torch: Any) -> Path:
    """A tiny Llama of bytes."""
    torch.manual_seed(3)
    path = tmp_path / "base"
    model = Llama(LlamaShape(258, layers=2, hidden=32, inner=64, heads=2, kv_heads=1, context=256))
    model.embed_tokens.weight.data *= 20  # the head too: so that a change of what is between can say something
    model.save(path)
    bytewise(path, END, 257)
    return path


def texts() -> Texts:
    """Three conversations; the last asks too much for an example."""
    said = [b"hello:\nhello you", b"name a tree:\nan oak", b"x" * 60 + b"y"]
    starts = np.cumsum([0, *map(len, said)])
    prompts = np.array([7, 13, 60])
    return Texts(np.frombuffer(b"".join(said), np.uint8).astype(np.int32), starts, prompts, "")


def data(base: Path, plan: recipe.Plan = PLAN) -> recipe.Data:
    return recipe.Data(plan, tokenizer_of(base), texts())


def test_examples(base: Path) -> None:
    kinds = set()
    for step in range(20):
        ids, begins, ends = data(base).batch(step)
        assert ids.shape[0] == len(begins) == len(ends) >= 1
        assert (ids != recipe.MASK).all()
        for row, begin, end in zip(ids, begins, ends, strict=True):
            assert 0 < begin < end <= ids.shape[1]
            assert (row[end:] == END).all()
            prompt = bytes(int(i) for i in row[:begin])
            kinds.add(prompt.split()[0].decode())
            assert not prompt.startswith(b"x")
        again = data(base).batch(step)
        np.testing.assert_array_equal(ids, again[0])
    assert kinds == {"hello:", "name", "count", "sort", "reverse", "add"}


def test_no_change_is_the_base(base: Path, torch: Any) -> None:
    net = recipe.network(open_model(base))
    ids = torch.arange(20)[None]
    before = net(ids)
    changes = adapt(net, recipe.MATRICES, 4, 2.0)
    assert torch.equal(net(ids), before)
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    assert trained == {id(p) for p in changes.parameters()}
    assert len(changes) == 2 * len(recipe.MATRICES)


def test_rows_see_what_stands_behind(base: Path, torch: Any) -> None:
    net = recipe.network(open_model(base))
    one, other = torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)
    other[0, 7] = 5
    assert not torch.equal(net(one)[0, 0], net(other)[0, 0])


def test_only_masked_places_count(base: Path, torch: Any) -> None:
    net = recipe.network(open_model(base))
    ids = torch.arange(30, 46)[None]
    hidden, behind = torch.zeros(1, 16, dtype=torch.bool), torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 9] = True
    logits = net.logits(net(ids.masked_fill(hidden, recipe.MASK))[0, 8]).float()
    wanted = torch.nn.functional.cross_entropy(logits[None], ids[:, 9])
    assert torch.allclose(recipe.masked_loss(net, ids, hidden, behind)[0], wanted)
    behind[0, 9:] = True
    assert torch.allclose(recipe.masked_loss(net, ids, hidden, behind)[0], wanted)


def test_trained_written_and_served(base: Path, tmp_path: Path, torch: Any) -> None:
    losses: list[float] = []
    out = tmp_path / "adapter"
    figures = recipe.train(PLAN, open_model(base), data(base), out, lambda p: losses.append(p.loss), str(base))
    assert losses[-1] < losses[0] - 0.5
    assert figures["parameters"] == sum(
        PLAN.rank * sum(open_model(base).raw(f"model.layers.{i}.{m}.weight").shape)
        for i in range(2)
        for m in (*(f"self_attn.{n}_proj" for n in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down")))
    )
    assert json.loads((out / "config.json").read_text()) == {"model_type": "Dream", "mask_token_id": recipe.MASK}
    assert not (out / "training").exists()

    net = recipe.network(open_model(out))  # the sum, read as a checkpoint
    prompt, length = list(b"count 3 by 4:\n"), 12
    ids = torch.tensor([[*prompt, *[recipe.MASK] * length]])
    logits = net.float().logits(net.float()(ids))[0, len(prompt) - 1 : -1].detach()
    logits[:, recipe.MASK] = -torch.inf
    params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True, unmasking=Unmasking(steps=1))
    with Writer(str(out), threads=1) as writer:
        (written,) = writer.write([(prompt, params)])
    best = logits.topk(2).values
    clear = (best[:, 0] - best[:, 1] > 0.05).numpy()  # the served weights are bfloat16
    assert clear.sum() >= length // 2
    np.testing.assert_array_equal(np.array(written.ids)[clear], logits.argmax(1).numpy()[clear])


def test_an_interrupted_training_goes_on(base: Path, tmp_path: Path, torch: Any) -> None:
    plan = replace(PLAN, steps=60)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe.train(plan, open_model(base), data(base, plan), whole, base=str(base))

    def stop(p: recipe.Progress) -> None:
        if p.step == 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.train(plan, open_model(base), data(base, plan), parts, stop, str(base))
    recipe.train(plan, open_model(base), data(base, plan), parts, base=str(base))
    for name in open_model(whole).names():
        np.testing.assert_array_equal(open_model(whole).f32(name), open_model(parts).f32(name))
