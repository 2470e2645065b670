"""Calibrations: what is measured, what a file says of itself, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diastole.assets import resolve
from diastole.bench.rig import Rig
from diastole.calibrate import double_sparsity, job
from diastole.cli.main import app, register
from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.slots import View
from diastole.types import Array, Batch, UserError
from diastole.weights import open_checkpoint
from diastole.weights.calibration import find
from techniques import owed

TEXT = double_sparsity.CONTEXT


def rig() -> Rig:
    return Rig.around(Engine([owed.service(kv="f32", prefix=False)], FakeClock(), LeastSlack()))


class Kept:
    """A probe that keeps rotated queries and keys."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Array, Array, Array]] = {}

    def need(self, layer: int, b: Batch) -> bool:
        return True

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        k, _ = view.store.read(view.layer, view.b.rows)
        self.layers[view.layer] = q.copy(), k, view.b.pos.copy()


def unrotated(x: Array, pos: Array, table: Array) -> Array:
    half = table.shape[1] // 2
    cos, sin = table[pos, None, :half], table[pos, None, half:]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)


def test_importance_is_what_it_says() -> None:
    ids, kept = owed.prompt(TEXT), Kept()
    with rig() as model:
        found = double_sparsity.measure(job.Job(model, ids))
        with model.watched(kept), model.stream(ids) as stream:
            model.absorb(stream)
        tables = [b.attn.rope for b in model.decoder.blocks]
    for layer, (q, k, pos) in kept.layers.items():
        groups = q.reshape(TEXT, 2, 2, 32)
        before = unrotated(q, pos, tables[layer]).reshape(groups.shape), unrotated(k, pos, tables[layer])
        for name, want in (
            ("qk", np.abs(groups * k[:, :, None]).mean(0).sum(1)),
            ("q", np.abs(before[0]).mean(0).sum(1)),
            ("k", np.abs(before[1]).mean(0)),
        ):
            np.testing.assert_allclose(found[name][layer], want, rtol=1e-4)


def test_all_texts_count() -> None:
    """And not the last alone."""
    one, other = owed.prompt(TEXT, 1), owed.prompt(TEXT, 2)
    heard: list[int] = []
    with rig() as model:
        apart = [double_sparsity.measure(job.Job(model, ids)) for ids in (one, other)]
        both = double_sparsity.measure(job.Job(model, one + other, heard.append))
        with pytest.raises(UserError, match="at least 512") as e:
            double_sparsity.measure(job.Job(model, one[:500]))
    assert e.value.param == "texts"
    assert heard == [TEXT, TEXT]
    for name in ("qk", "q", "k"):
        np.testing.assert_allclose(both[name], (apart[0][name] + apart[1][name]) / 2, rtol=1e-4)


def test_what_needs_no_calibration_is_refused() -> None:
    with pytest.raises(UserError, match="'tidaldecode' needs no calibration; these do: aded, double-sparsity, ") as e:
        job.of("tidaldecode")
    assert e.value.param == "name"
    assert job.of("double_sparsity") is double_sparsity


@pytest.mark.model
def test_the_command(tmp_path: Path) -> None:
    """On another text it finds much the same channels as those that come along."""
    text, out = tmp_path / "text", tmp_path / "folder" / "out.safetensors"
    text.write_text(Path(job.__file__).read_text() * 4)
    if not app.registered_commands:
        register()
    done = CliRunner().invoke(
        app,
        ["calibrate", "double-sparsity", "smollm2-135m", "--texts", str(text), "--tokens", "1100", "--out", str(out)],
    )
    assert done.exit_code == 0, done.output
    assert "1,100 tokens of text" in done.output
    checkpoint = open_checkpoint(resolve("smollm2-135m"))
    with Rig(context=128) as model:
        facts = model.decoder.facts(checkpoint)
    own, along = find("double-sparsity", facts, str(out)), find("double-sparsity", facts)
    assert own.about["rope"] == "base 100000, scaling none"
    assert own.about["tokens"].startswith("1100 ")
    best = [np.argsort(-c.tensors["qk"], -1)[..., :16] for c in (own, along)]
    common = (best[0][..., :, None] == best[1][..., None, :]).sum((-1, -2)).mean()
    assert common >= 12  # of 16; by chance 4
    missing = CliRunner().invoke(app, ["calibrate", "double-sparsity", "smollm2-135m", "--texts", str(tmp_path / "no")])
    assert isinstance(missing.exception, UserError)
    assert "cannot be read" in str(missing.exception)
