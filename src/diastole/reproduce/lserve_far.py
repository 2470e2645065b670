"""LServe's attention far beyond the model's context, over random keys and values: time alone, nothing about quality."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diastole import registry
from diastole.bench.geometry import SMOLLM2, Synthetic
from diastole.kernels.table import Ops, load
from diastole.reproduce.must import at_least
from diastole.reproduce.study import Study
from diastole.slots import Facts, View
from diastole.state.kv import PagedKV
from diastole.types import Array, Batch, Grant, Request, Stream
from diastole.weights.calibration import Calibration, about

LAYERS = 6  # a step's planning is shared by them; a model has more
_STEPS = 32  # decoded tokens of one turn


def far(study: Study, knobs: str, rounds: int, folder: Path) -> None:
    """Selection and attention of decode steps over random keys: the time of steps, nothing about quality."""
    study.note(f"at 32k and more: random keys and values, {LAYERS} layers, every second head streams")
    ops = load()
    rows, ratios = [], {}
    for n in (8_192, 32_768) if study.quick else (8_192, 32_768, 131_072):
        policy = _policy(knobs, n, ops, folder)
        store = PagedKV("bf16")
        store.attach(policy.companion)
        field = Synthetic(replace(SMOLLM2, layers=LAYERS), store, ops, (n,))
        _bound(field, policy, ops)
        found = study.interleaved(
            {"dense": partial(_steps, field, None, ops), "sparse": partial(_steps, field, policy, ops)}, rounds, 2
        )
        ratio = found.speedup("sparse", over="dense")
        ratios[n] = ratio
        rows.append([n, *(1e3 * found.median(x) / _STEPS / LAYERS for x in ("dense", "sparse")), ratio.median])
    study.table("a layer's attention in ms, synthetic", ["tokens", "dense", "sparse with selection", "ratio"], rows)
    study.curve(
        "attention beside dense", [r[0] for r in rows], [r[3] for r in rows], xlabel="tokens", ylabel="times as fast"
    )
    study.check("attention at 32k, synthetic", ratios[32_768], at_least(5), unit="x", claim="grows with the context")
    if not study.quick:
        study.check("attention at 128k, synthetic", ratios[131_072], at_least(10), unit="x", claim="grows further")


def _policy(knobs: str, tokens: int, ops: Ops, folder: Path) -> Any:
    """The technique for some layers of the synthetic geometry, in which half of the heads stream."""
    facts = Facts(frozenset({"paged_kv"}), LAYERS, 9, 3, 64, tokens, fingerprint="synthetic", ops=ops)
    table = folder / "synthetic.safetensors"
    gates = np.arange(3 * LAYERS, dtype=np.float32).reshape(LAYERS, 3) % 2
    Calibration({"gates": gates}, about("lserve", facts)).write(table)
    module, params = registry.load(registry.Spec.parse(f"lserve:{knobs},pattern={table}"))
    return module.TECHNIQUE(params, facts)["select"]


def _batch(field: Synthetic, pos: Array, stream: Stream | None = None) -> Batch:
    rows = field.pool.rows(field.tables, np.zeros_like(pos), pos)
    ends = np.array([0, len(pos)], np.int32)
    grants = () if stream is None else (Grant(stream, len(pos)),)
    zeros = np.zeros_like(pos)
    return Batch(grants, (), pos, pos, ends, rows, field.tables, zeros, pos + 1, ends[1:] - 1)


def _view(field: Synthetic, layer: int, b: Batch, ops: Ops) -> View:
    return View(layer, field.store, ops, b, b.lo, field.geometry.head_dim**-0.5)


def _bound(field: Synthetic, policy: Any, ops: Ops) -> None:
    """Let the technique take in all keys, some thousand at a time."""
    n = field.lengths[0]
    for at in range(0, n, 8_192):
        b = _batch(field, np.arange(at, min(at + 8_192, n), dtype=np.int32))
        for layer in range(field.geometry.layers):
            policy.companion.close(_view(field, layer, b, ops))


def _steps(field: Synthetic, policy: Any, ops: Ops) -> None:
    """The last tokens of a stream, decoded: everything that attention does in them, and what selection does."""
    n, g, scale = field.lengths[0], field.geometry, field.geometry.head_dim**-0.5
    q = field.queries()
    out = np.empty_like(q)
    qkv = np.concatenate([q, q[:, : 2 * g.kv_heads]], 1)
    k, v = (qkv[:, at : at + g.kv_heads] for at in (g.heads, g.heads + g.kv_heads))
    given = n - _STEPS
    stream = Stream(Request("far", "far", (), None), 0, known=n, given=given)
    for pos in range(given, n):
        b = _batch(field, np.array([pos], np.int32), stream)
        native: Any = None if policy is None else policy.between(b, field.store, ops.fuse(), scale)
        for layer in range(g.layers):
            if native is None:
                field.store.write(layer, b.rows, k, v)
                field.store.attend(layer, q, b.tables, b.starts, b.lo, b.hi, scale, out)
            else:
                native.mix(g.layers, layer, qkv, out)
