"""The recipe of models that fill placeholders: units, packed rows, texts, and a training that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from diastole.bench.rig import Rig
from diastole.nn.tokens import tokenizer_of
from diastole.types import UserError

torch = pytest.importorskip("torch")
from diastole.recipes import lexical_units as recipe  # noqa: E402
from diastole.recipes import unit_texts  # noqa: E402
from diastole.recipes.llama import Llama, LlamaShape  # noqa: E402

SMALL = LlamaShape(320, layers=2, hidden=64, inner=128, heads=2, kv_heads=1, context=128)
PLAN = recipe.Plan(20, 20, rows=4, window=64, room=32, alpha=0.004, library=150_000, pages=60, shape=SMALL)


def test_units_by_hand() -> None:
    likely = np.array([0.0, 0.95, 0.99, 0.3, 0.9, 0.1, 0.1, 0.95, 0.95, 0.95, 0.95, 0.2])
    assert recipe.units(likely, 0.9, 4) == [(0, 3), (3, 2), (5, 1), (6, 4), (10, 1), (11, 1)]
    assert recipe.units(likely, 0.9, 2) == [(0, 2), (2, 1), (3, 2), (5, 1), (6, 2), (8, 2), (10, 1), (11, 1)]
    assert recipe.units(likely, 1.0, 4) == [(i, 1) for i in range(12)]


def test_the_packed_row_by_hand() -> None:
    ids, plan = np.array([10, 11, 12, 13, 14, 15], np.int32), replace(PLAN, room=4, max_unit=6)
    row = recipe.packed(ids, [(0, 2), (2, 3), (5, 1)], plan, np.random.default_rng(0))
    last = SMALL.vocab - 1
    assert row.ids.tolist() == [10, 11, 12, 13, 14, 15, last, last, last, last]
    assert row.pos.tolist()[:8] == [0, 1, 2, 3, 4, 5, 2, 3]  # of the tokens that they stand for, 12 and 13
    assert row.labels.tolist() == [11, 12, 13, 14, 15, -100, 13, 14, -100, -100]
    x = [[int(c) for c in line] for line in (
        "1000000000", "1100000000", "1110000000", "1111000000", "1111100000", "1111110000",
        "1100001000",  # the text before its unit, and itself
        "1100001100",  # and its elder sibling
        "0000000010", "0000000001",  # of no unit
    )]  # fmt: skip
    assert row.mask.astype(int).tolist() == x
    wider = recipe.packed(ids, [(0, 1), (1, 1), (2, 4)], replace(plan, beyond=1), np.random.default_rng(0))
    assert sorted(wider.labels[6:].tolist()) == [12, 13, 14, 15]


def test_rows_that_see_the_past_are_the_model_s_own() -> None:
    torch.manual_seed(0)
    model, ids = Llama(SMALL), torch.randint(0, 320, (2, 40))
    pos, mask = torch.arange(40).expand(2, 40), torch.ones(40, 40, dtype=torch.bool).tril().expand(2, 40, 40)
    with torch.no_grad():
        assert torch.allclose(recipe.hidden(model, ids, pos, mask), model(ids), atol=1e-5)


def test_a_placeholder_is_trained_on_what_it_will_see() -> None:
    """Packed rows give each placeholder what it has when it stands behind the text alone."""
    torch.manual_seed(0)
    model, rng = Llama(SMALL), np.random.default_rng(0)
    for p in model.parameters():
        p.data *= 4
    ids = rng.integers(0, 319, 30).astype(np.int32)
    row = recipe.packed(ids, [(0, 9), (9, 5), (14, 1), (15, 4), (19, 11)], replace(PLAN, room=20, max_unit=9), rng)
    whole = [torch.from_numpy(part)[None] for part in (row.ids, row.pos, row.mask)]
    with torch.no_grad():
        got = recipe.hidden(model, *whole)[0]
        for start, length in ((9, 5), (15, 4)):
            alone = torch.tensor([[*ids[:start].tolist(), *[319] * (length - 1)]])
            want = model(alone)[0, start:]
            first = next(i for i in range(30, 50) if row.pos[i] == start and row.mask[i, :30].sum() == start)
            assert torch.allclose(got[first : first + length - 1], want, atol=1e-4)
        assert torch.allclose(got[:30], model(torch.from_numpy(ids[None]).long())[0], atol=1e-4)


def test_the_folds_share_no_document_and_keep_what_is_judged_apart() -> None:
    folds = unit_texts.texts(PLAN.seed, 1_000_000, PLAN.pages)
    assert not set(folds.train) & set(folds.held)
    assert not set(folds.train) & set(folds.test)
    assert folds == unit_texts.texts(PLAN.seed, 1_000_000, PLAN.pages)
    judged = dict(unit_texts._library())["difflib"].read_text()
    assert judged not in folds.train + folds.held


def test_the_dictionary_and_the_sums() -> None:
    source = 'def f():\n    """Say it\n    once.\n\n    More."""\n\nclass A:\n    """A thing."""\n'
    assert unit_texts.dictionary("m", source).split("\n\n") == [
        "Entry: f\nKind: function of the module m\nMeaning: Say it once.",
        "Entry: A\nKind: class of the module m\nMeaning: A thing.\n",
    ]
    assert unit_texts.dictionary("m", "def (") == ""
    rng = Random(0)
    for question, answer in (unit_texts.problem(rng) for _ in range(200)):
        numbers = [int(x) for x in "".join(c if c.isdigit() else " " for c in answer).split()]
        if "plus" in question:
            assert numbers[0] + numbers[1] == numbers[2]
        if "minus" in question:
            assert numbers[0] - numbers[1] == numbers[2] >= 0


@pytest.mark.usefixtures("torch")  # one thread
def test_an_interrupted_training_goes_on_and_its_model_is_served(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"untuned": [], "tuned": []}
    whole = recipe.train(PLAN, tmp_path / "whole", lambda p: losses[p.stage].append(p.loss))
    for said in losses.values():
        assert len(said) == 20
        assert np.mean(said[15:]) < np.mean(said[:5])

    for stage, stop in (("untuned", 12), ("tuned", 12)):

        def interrupted(p: recipe.Progress, stage: str = stage, stop: int = stop) -> None:
            if (p.stage, p.step) == (stage, stop):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            recipe.train(PLAN, tmp_path / "parts", interrupted, save_every=10)
    steps: list[tuple[str, int]] = []
    recipe.train(PLAN, tmp_path / "parts", lambda p: steps.append((p.stage, p.step)))
    assert steps == [("tuned", i) for i in range(11, 21)]
    for stage in ("untuned", "tuned"):
        one, other = (tmp_path / name / stage / "model.safetensors" for name in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
        card = (tmp_path / "whole" / stage / "README.md").read_text()
        assert "PSF licence" in card
    assert whole["mean_unit"] > 1
    assert 0 <= whole["right"] <= 1
    with pytest.raises(UserError, match="another plan"):
        recipe.train(replace(PLAN, seed=1), tmp_path / "parts", lambda p: None)
    _served(tmp_path / "whole")


def _served(out: Path) -> None:
    tuned = tokenizer_of(out / "tuned")
    assert tuned.token(SMALL.vocab - 1) == recipe.PLACEHOLDER
    assert SMALL.vocab - 1 not in tuned.encode(recipe.PLACEHOLDER, special=False)
    assert tuned.eos_ids == {0}
    with Rig(str(out / "tuned"), ("lexical-unit-decoding",), kv="f32", weights="f32") as rig:
        assert rig.loop.drafter.token == SMALL.vocab - 1  # type: ignore[attr-defined]
        ids = tuned.encode("Question: What is 2 plus 3?", special=False)
        model = Llama(SMALL)
        from safetensors.torch import load_file

        weights = load_file(out / "tuned" / "model.safetensors")
        model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
        with rig.stream(ids) as s, torch.no_grad():
            own, want = rig.absorb_all(s), model.logits(model(torch.tensor([ids])))[0].numpy()
        assert np.abs(own - want).max() < 1e-3 * max(1, np.abs(want).max())
    with pytest.raises(UserError, match="name none"):
        Rig(str(out / "untuned"), ("lexical-unit-decoding",))
