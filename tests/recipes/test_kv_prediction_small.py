"""KV prediction on small models: that what is trained is what is served, and that a training goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.recipes import layerskip
from diastole.types import UserError


@pytest.fixture
def recipe(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from diastole.recipes import kv_prediction_small as module

    words = {"code": "def f(x): return x\n" * 400, "documentation": "It tells what there is. " * 400}
    monkeypatch.setattr(layerskip, "DOMAINS", {name: lambda text=text: text for name, text in words.items()})
    return module


def plan(recipe: Any, **changed: Any) -> Any:
    base = replace(recipe.BASE, vocab=300, layers=4, hidden=64, inner=64, heads=2, kv_heads=1, context=256)
    small = replace(base, layers=2, hidden=32, inner=32, heads=1)
    return recipe.Plan(
        **{"strings": 2, "steps": 4, "told": 3, "tokens": 128, "base": base, "small": small, "kept": (0, 2), **changed}
    )


def test_told_its_own_keys_a_model_says_the_same(recipe: Any, torch: Any) -> None:
    torch.manual_seed(0)
    model, ids = recipe.Llama(plan(recipe).base), torch.randint(0, 300, (2, 40))
    states, kv = recipe.keys_of(model, ids)
    torch.testing.assert_close(states, model(ids))
    torch.testing.assert_close(recipe.told(model, ids, kv), states)
    other = [(k + 0.5, v) for k, v in kv]
    assert (recipe.told(model, ids, other) - states).abs().max() > 1e-3


def test_a_predictor_of_the_whole_model_begins_as_the_identity(recipe: Any, torch: Any) -> None:
    base = recipe.Llama(plan(recipe).base)
    student, ids = recipe.Predictor(recipe.pruned(base, range(4)), base.shape), torch.randint(0, 300, (2, 33))
    assert student.map == [0, 1, 2, 3]
    _, kv = student(ids)
    for ours, theirs in zip(kv, recipe.keys_of(base, ids)[1], strict=True):
        torch.testing.assert_close(ours, theirs)
    parts = {
        (b, k): recipe.predicted(student, base, ids, recipe.Loss(b, k)).item()
        for b in (True, False)
        for k in (True, False)
    }
    own = recipe.own_loss(base, ids).item()
    assert parts[False, False] == pytest.approx(own)
    assert parts[True, True] == pytest.approx(2 * own)  # keys and values are right


def test_pruned_models_keep_their_layers(recipe: Any, torch: Any) -> None:
    base = recipe.Llama(plan(recipe).base)
    found = recipe.pruned(base, (1, 3))
    assert torch.equal(found.layers[1].mlp.down_proj.weight, base.layers[3].mlp.down_proj.weight)
    assert torch.equal(found.embed_tokens.weight, base.embed_tokens.weight)
    assert found.layers[1].mlp.down_proj.weight.data_ptr() != base.layers[3].mlp.down_proj.weight.data_ptr()


def test_the_base_stays_and_a_training_goes_on(recipe: Any, torch: Any, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    heard: list[tuple[str, int]] = []

    def stop(name: str, step: int, loss: float) -> None:
        heard.append((name, step))
        if heard[-1] == ("kvp-lp", 2):
            raise Interrupted

    p = plan(recipe)
    with pytest.raises(Interrupted):
        recipe.train(p, tmp_path, stop, save_every=1)
    heard.clear()
    found = recipe.train(p, tmp_path, lambda name, step, loss: heard.append((name, step)))
    assert heard[0] == ("kvp-lp", 2)  # what came before was kept
    assert {name for name, _ in heard} == {"kvp-lp", "kvp-c without KV loss", "kvp-c without base CE"}
    again = recipe.train(p, tmp_path / "other", lambda name, step, loss: None)
    for name, student in found.students.items():
        for ours, theirs in zip(student.parameters(), again.students[name].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    for ours, theirs in zip(found.base.parameters(), again.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    c = found.students["kvp-c"], found.students["kvp-c without KV loss"]
    assert not torch.equal(c[0].maps[0], c[1].maps[0])
    with pytest.raises(UserError, match="another plan"):
        recipe.train(replace(p, seed=1), tmp_path, lambda name, step, loss: None)


def test_what_is_trained_is_what_is_served(recipe: Any, torch: Any, tmp_path: Path) -> None:
    from diastole.reproduce import kv_prediction_small as study
    from diastole.reproduce.kv_prediction_prompts import Text

    trained = recipe.train(plan(recipe, steps=20, told=20), tmp_path, lambda name, step, loss: None)
    ids = np.arange(90, dtype=np.int32) * 7 % 300
    with study.serve(trained, tmp_path) as served:
        for name in ("kvp-c", "kvp-lp"):
            side = served.side(name)
            side.rig.loop.absorb.exact = 0  # as it is trained
            got = side.first(ids)
            student = trained.students[name]
            with torch.no_grad():
                x = torch.from_numpy(ids.astype(np.int64))[None]
                _, kv = student(x)
                _, own = recipe.keys_of(trained.base, x)
                mixed = []  # the last token's own keys at the last place
                for (k, v), (k_own, v_own) in zip(kv, own, strict=True):
                    mixed.append((torch.cat((k[:, :-1], k_own[:, -1:]), 1), torch.cat((v[:, :-1], v_own[:, -1:]), 1)))
                close = trained.base.logits(recipe.told(trained.base, x, mixed))[0, -1].numpy()
            exact = served.side("base").first(ids)
            assert np.abs(got - close).mean() < 0.35 * np.abs(exact - close).mean()
        text = Text(ids[:60], ids[60:])
        assert served.side("kvp-c").logits(text).shape == (30, 300)


def test_batches_hold_texts_and_copying_in_turn(recipe: Any) -> None:
    taught = {"code": np.full(2000, 7, np.int32), "documentation": np.full(2000, 9, np.int32)}
    rows, since = recipe.passages(0, plan(recipe, tokens=512 * 3), taught)
    assert since == 0
    assert rows.shape == (3, 513)
    assert (rows[0] == 7).all()
    assert (rows[1] == 9).all()
    assert any((rows[2][:-n] == rows[2][n:]).all() for n in range(8, 256))
    assert len(set(rows[2].tolist())) > 5


def test_what_counts_of_strings_has_come_before(recipe: Any) -> None:
    rows, since = recipe.strings(2, plan(recipe, tokens=64 * 40), {})
    assert rows.shape == (40, 65)
    assert all(token in row[: since + 1] for row in rows for token in row[since + 1 :])
    assert len({len(set(row.tolist())) for row in rows}) > 5  # they come again after more or fewer


def test_a_loss_from_the_middle_on_is_of_what_follows_there(recipe: Any, torch: Any) -> None:
    torch.manual_seed(0)
    model, ids = recipe.Llama(plan(recipe).base), torch.randint(0, 300, (3, 21))
    logits = model.logits(model(ids[:, :-1]))[:, 8:].flatten(0, 1)
    z = recipe.Z_LOSS * torch.logsumexp(logits, -1).square().mean()
    want = torch.nn.functional.cross_entropy(logits, ids[:, 9:].flatten()) + z
    torch.testing.assert_close(recipe.own_loss(model, ids, 8), want)


def test_a_model_that_has_grown_says_what_it_said(recipe: Any, torch: Any) -> None:
    torch.manual_seed(0)
    shape, ids = plan(recipe).base, torch.randint(0, 300, (2, 17))
    few = recipe.Llama(replace(shape, layers=2))
    more = recipe.grown(few, shape)
    torch.testing.assert_close(more(ids), few(ids))
    assert torch.equal(more.layers[2].self_attn.q_proj.weight, few.layers[1].self_attn.q_proj.weight)
    recipe.own_loss(more, ids).backward()
    assert more.layers[1].mlp.down_proj.weight.grad.abs().max() > 0  # and learns with all that it has


def test_what_linear_maps_could_tell(recipe: Any, torch: Any) -> None:
    torch.manual_seed(0)
    base, other = recipe.Llama(plan(recipe).base), recipe.Llama(plan(recipe).small)
    ids = torch.randint(0, 300, (6, 60))
    whole = recipe.explained(recipe.Predictor(recipe.pruned(base, range(4)), base.shape), base, ids)
    assert whole == pytest.approx([1.0] * 4, abs=1e-3)
    few = recipe.explained(recipe.Predictor(other, base.shape), base, ids)
    assert all(share < 0.5 for share in few)
