"""Maps of kv-prediction by regression: that the sums are those of all rows, and that what is learned is served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.rig import Rig
from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.params import SamplingParams
from diastole.recipes import kv_prediction as recipe
from diastole.recipes.kv_prediction import (
    Plan,
    Progress,
    Readers,
    Sums,
    drawn,
    mapping,
    tensors,
    train,
    unpacked,
    usual,
)
from diastole.types import Array, UserError
from diastole.weights.calibration import Calibration, about
from models.common import embedded
from techniques import owed

PLAN = Plan((0, 5, 10, 15), tokens=1500, exact=4)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """The small model; its text is made up."""

    def passages(rig: Rig, plan: Plan, own: Any = None, apart: bool = False) -> Iterator[Array]:
        ids = np.array(owed.prompt(4000, 70 + apart), np.int32)
        return drawn([ids, ids[::-1].copy()], [96, 160], [plan.seed, apart], apart)

    monkeypatch.setattr(recipe, "passages", passages)
    with Rig.around(Engine([owed.service(streams=2)], FakeClock(), LeastSlack())) as rig:
        yield rig


def test_mappings() -> None:
    assert usual(30) == (0, 4, 8, 12, 16, 20, 24, 28)
    assert mapping(usual(30), 30) == [i // 4 for i in range(30)]
    assert mapping((0, 5, 10), 12) == [0] * 5 + [1] * 5 + [2] * 2
    assert mapping((2, 3), 5) == [0, 0, 0, 1, 1]  # those below the first are told by it


def test_what_is_read_is_what_the_model_keeps(rig: Rig) -> None:
    ids = np.array(owed.prompt(70), np.int32)
    readers = Readers(rig.decoder, range(16), 128)
    attn = rig.decoder.blocks[0].attn
    with rig.stream(ids.tolist()) as stream:
        rig.absorb(stream)
        store, rows = (
            rig.service.state["kv"],
            rig.loop.pool.rows(rig.loop.pool.tables([stream.leases["kv"]]), np.zeros(70, int), np.arange(70)),
        )
        for layer, (told, true) in enumerate(zip(readers.told(ids), readers.true(ids), strict=True)):
            assert np.array_equal(told, true)
            k, v = (x.reshape(70, 2, 32).copy() for x in true)
            attn.ops.rope(k, np.arange(70, dtype=np.int32), attn.rope)
            want = store.read(layer, rows)
            np.testing.assert_allclose(k, want[0], rtol=0.01, atol=0.01)
            np.testing.assert_allclose(v, want[1], rtol=0.01, atol=0.01)


def made(rng: np.random.Generator, n: int, w: Array, noise: float) -> tuple[list[Array], list[Array]]:
    """Rows of two auxiliary layers, and of three of a model that are maps w (2, 3, 32, 33) of these."""
    told = [rng.normal(size=(2, n, 32)).astype(np.float32) * 3 + 1 for _ in range(2)]
    true = []
    for layer, j in enumerate((0, 0, 1)):
        y = np.stack([told[j][side] @ w[side, layer, :, :-1].T + w[side, layer, :, -1] for side in range(2)])
        true.append((y + rng.normal(size=y.shape) * noise).astype(np.float32))
    return told, true


def test_a_regression_finds_the_maps_that_there_are() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 3, 32, 33))
    m, sums, held = [0, 0, 1], Sums.none(2, 3, 32, 32), Sums.none(2, 3, 32, 32)
    for _ in range(4):
        told, true = made(rng, 200, w, 0.01)
        for rows in [*told, *true]:
            rows[:, :4] = 1e3  # the first tokens are something else
        sums.add(told, iter(true), m, 4)
    assert sums.rows == 4 * 196
    found = sums.maps(m, 1e-8)
    np.testing.assert_allclose(found, w, atol=0.02)
    told, true = made(rng, 300, w, 0.0)
    held.add(told, iter(true), m, 0)
    assert held.errors(found, m).max() < 0.01
    mean = np.zeros_like(found)
    mean[..., -1] = held.yx[..., -1] / held.rows
    np.testing.assert_allclose(held.errors(mean, m), 1.0)  # as it is defined
    rough = found + rng.normal(size=found.shape) * 0.1
    want = []
    for side in range(2):
        for layer, j in enumerate(m):
            y = true[layer][side].astype(np.float64)
            got = told[j][side] @ rough[side, layer, :, :-1].T + rough[side, layer, :, -1]
            want.append((((y - got) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()) ** 0.5)
    np.testing.assert_allclose(held.errors(rough, m).ravel(), want, rtol=1e-4)


def test_a_ridge_spares_what_is_added() -> None:
    rng = np.random.default_rng(1)
    sums = Sums.none(1, 1, 32, 32)
    x = rng.normal(size=(2, 400, 32)).astype(np.float32)
    sums.add([x - x.mean(1, keepdims=True)], iter([np.full((2, 400, 32), 7, np.float32)]), [0], 0)
    found = sums.maps([0], 1e6)
    assert np.abs(found[..., :-1]).max() < 1e-3
    np.testing.assert_allclose(found[..., -1], 7, rtol=1e-3)


def test_tensors_hold_the_maps() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 16, 64, 65))
    found = tensors(PLAN, maps)
    assert found["map"].tolist() == mapping(PLAN.layers, 16)
    assert found["as_is"].tolist() == [False] * 16
    np.testing.assert_allclose(unpacked(found), maps, atol=0.02)


def test_all_layers_learn_to_stay_as_they_are(rig: Rig) -> None:
    plan = replace(PLAN, layers=tuple(range(16)), ridge=1e-6)
    found, figures = train(rig, plan)
    for errors in figures["errors"].values():
        assert max(errors) < 0.02  # eight bits
    np.testing.assert_allclose(unpacked(found)[..., :-1], np.broadcast_to(np.eye(64), (2, 16, 64, 64)), atol=0.02)


def test_what_is_learned_is_served_and_nearer_than_the_mean(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    found, figures = train(rig, PLAN, tell=heard.append)
    assert heard[-1] == Progress(1500, 1500)
    errors = np.array([*figures["errors"].values()])
    assert errors.shape == (2, 16)
    assert (errors[:, 0] < 0.02).all()  # the first layer is read as it is
    assert (errors[:, [5, 10, 15]] > 0.05).all()  # others are not: what came into them skipped layers
    assert figures["bytes"] == sum(x.nbytes for x in found.values())
    Calibration(found, about("kv-prediction", owed.facts())).write(tmp_path / "maps")
    monkeypatch.setattr(owed, "SamplingParams", partial(SamplingParams, allow_approximate_prefill=True))
    owed.acts(f"kv-prediction:maps={tmp_path / 'maps'},min_prompt=40")


def test_an_interrupted_regression_goes_on(rig: Rig, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(p: Progress) -> None:
        if p.tokens > 700:
            raise Interrupted

    kept = tmp_path / "maps.training"
    with pytest.raises(Interrupted):
        train(rig, PLAN, tell=stop, kept=kept, save_every=2)
    heard: list[Progress] = []
    found, _ = train(rig, PLAN, tell=heard.append, kept=kept)
    assert 600 < heard[0].tokens < 1000
    want, _ = train(rig, PLAN)
    assert all(np.array_equal(found[name], want[name]) for name in want)
    with pytest.raises(UserError, match="another plan"):
        train(rig, replace(PLAN, seed=1), kept=kept)
    kept.write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        train(rig, PLAN, kept=kept)


def test_errors(rig: Rig) -> None:
    for layers in ((), (5, 5), (3, 16), (-1, 3)):
        with pytest.raises(UserError, match="--layers") as wrong:
            train(rig, replace(PLAN, layers=layers))
        assert wrong.value.param == "layers"
    with pytest.raises(UserError, match="fewer than 500 tokens"):
        next(drawn([np.arange(400)], [500], [0], False))


def test_passages_come_in_turn_and_end_only_apart() -> None:
    texts = [np.arange(1000), np.arange(1000, 1300)]
    found = drawn(texts, [64, 400], [0], False)
    some = [next(found) for _ in range(6)]
    assert [len(x) for x in some] == [64, 64, 400, 300, 64, 64]
    assert [x[0] >= 1000 for x in some] == [False, True] * 3
    assert len([*drawn(texts, [64], [0], True)]) == 2 * recipe.HELD


@pytest.mark.model
def test_a_passage_of_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded()
    monkeypatch.setattr(recipe, "HELD", 1)
    monkeypatch.setattr(recipe, "LENGTHS", (128,))
    monkeypatch.setattr(recipe, "DOMAINS", {"documentation": lambda: "there is some"})
    with Rig(context=512, threads=1) as rig:
        found, figures = train(rig, Plan(usual(30), tokens=200))
    assert [len(x) for x in figures["errors"].values()] == [30, 30]
    assert figures["held"] == 124
    assert figures["bytes"] < 4e6
    assert found["k.q"].shape == (30, 192, 192)
