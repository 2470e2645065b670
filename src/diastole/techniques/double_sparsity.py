"""Double Sparsity: a few channels of every key tell which tokens matter; attention reads those alone.

Yang, Sheng, Gonzalez, Stoica, Zheng: "Post-Training Sparse Attention with Double Sparsity", 2024, arXiv 2408.07092.
Beside every page lies a label cache: of each key the ``channels`` that weighed most on calibration texts. While
decoding, a layer scores the whole past by labels alone and attends exactly to the best ``budget`` tokens; the first
layers, prompts and short contexts are dense. ``diastole calibrate double-sparsity MODEL`` finds the channels; those of
the embedded model come along.

Ours: query heads that share a key share its channels (the largest summed importance) and its tokens (the largest score
that any of them gives), because labels per query head would triple the cache; the first tokens and the latest, the
stream's own among them, are always in. Labels are taken from keys before these are rounded, and padded in memory to a
multiple of 16 channels; four bits for twice the channels are fewer bytes and choose better. The variant that fetches
from a host's memory is no part of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.nn.selection import Decoding, Tokens, decoding, nobody
from diastole.slots import Facts, KVStore, View
from diastole.state.arena import layered
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, KVFormat, PagedSpec, UserError
from diastole.weights.calibration import Calibration, find

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

NEEDS = frozenset({"paged_kv"})
NAME = "double-sparsity"
_NOTE = NAME
_LANES = 16  # channels in memory come in multiples of this
_LEAST = 16  # tokens of a budget


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    channels: int = 32  # of each key that are kept as its label
    bits: int = 4  # of a label's channels: 4 (with one step and one least value for all of a key's), or 16
    budget: int = 512  # tokens that a row attends to at least, sink and recent ones among them
    share: float = 0.0  # of the context that a row attends to, where that is more than the budget
    by: str = "qk"  # importance: "qk" (mean |q k|, rotated), "q" or "k" (mean |q|, |k|, before rotation)
    pairs: bool = False  # choose the two channels that rotate together as one
    dense_layers: int = 2  # first layers that attend to everything
    sink: int = 4  # first tokens, always attended to
    recent: int = 16  # latest tokens, always attended to
    dense_below: int = 1024  # tokens of a context under which everything is attended to
    calibration: str = ""  # file; empty: beside the model's, or the one that comes along


class Labels:
    """Companion: some channels of every key, layer by layer."""

    def __init__(self, channels: Array, bits: int, dense_layers: int, calibration: str) -> None:
        self.channels = channels  # (layers, Hkv, r) int32, ascending
        self.bits, self._dense = bits, dense_layers
        self.layout = f"labels{channels.shape[2]}x{bits}-{dense_layers}-{calibration}"
        self._arrays: list[Array] = []

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> Sequence[Array]:
        self._ops = ops
        size = PAGE * (-(-self.channels.shape[2] // _LANES) * _LANES) * self.bits // 8
        size += 0 if self.bits == 16 else PAGE * 4  # step and least value of each key
        self._arrays = layered(ops, spec.layers - self._dense, (pages, spec.kv_heads, size))
        return self._arrays

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        if layer >= self._dense:
            self._ops.keys_write(self.of(layer), rows, k, self.channels[layer], self.bits)

    def of(self, layer: int) -> Array:
        """(pages, Hkv, bytes) of a layer that is not dense."""
        return self._arrays[layer - self._dense]

    @property
    def sparse(self) -> tuple[list[Array], list[Array]]:
        """All of these, and their channels."""
        return self._arrays, [*self.channels[self._dense :]]


class DoubleSparsity:
    """Slot ``select``; an ``Unbroken`` too."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    revocable = True
    prefers: KVFormat = "rows"
    exact = False

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p, facts)
        self.p, self.heads, self.dim = p, facts.heads, facts.head_dim
        self._native: Any = None  # see ``between``
        found = find(NAME, facts, p.calibration)
        # What depends on ``by`` and ``pairs`` is in the channels, and these change with both.
        channels = _channels(_importance(found, p.by, facts), p.channels, p.pairs)
        self.companion = Labels(channels, p.bits, p.dense_layers, f"{found.id}-{p.by}{'2' if p.pairs else ''}")

    def select(self, view: View, q: Array) -> Tokens | None:
        b, p = view.b, self.p
        if view.layer < p.dense_layers or view.lo is not b.lo:  # a layer with a window sees little
            return None
        plan = self._plan(b)
        if plan is None:
            return None
        rows, chosen, labels = plan.rows, plan.chosen, self.companion
        view.ops.choose(
            q,
            labels.of(view.layer),
            labels.channels[view.layer],
            rows.which,
            rows.tables,
            rows.lo,
            rows.hi,
            plan.most,
            p.sink,
            p.recent,
            chosen.at,
            chosen.counts,
            labels.bits,
        )
        return chosen

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        plan, p = self._plan(b), self.p
        rows = nobody(b) if plan is None else plan.rows
        most = rows.which if plan is None else plan.most
        if self._native is None:
            labels = self.companion
            self._native = fused.ByLabels(kv.buffers, kv.fmt, self.heads, self.dim, scale, *labels.sparse, labels.bits)
        self._native.batch(
            b.rows, b.tables, b.starts, b.lo, b.hi,
            rows.which, rows.tables, rows.lo, rows.hi, most, p.sink, p.recent,
        )  # fmt: skip
        return self._native

    def _plan(self, b: Batch) -> _Plan | None:
        if _NOTE not in b.notes:
            b.notes[_NOTE] = self._made(b)
        plan: _Plan | None = b.notes[_NOTE]
        return plan

    def _made(self, b: Batch) -> _Plan | None:
        if self.p.share == 1:
            return None
        rows = decoding(b, max(self.p.dense_below, self.p.budget + 1))
        if rows is None:
            return None
        seen = rows.hi - rows.lo
        if self.p.share:
            wanted = np.maximum(np.ceil(self.p.share * seen), self.p.budget)
            most = np.minimum(wanted, seen).astype(np.int32)
        else:
            most = np.full(len(seen), self.p.budget, np.int32)
        shape = (len(most), self.companion.channels.shape[1])
        return _Plan(
            rows, most, Tokens(rows.which, np.empty((*shape, int(most.max())), np.int64), np.empty(shape, np.int32))
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same in all layers of a batch, and the room for what one layer chooses, used again by the next."""

    rows: Decoding
    most: Array  # (R,) int32: how many tokens each attends to
    chosen: Tokens


def _channels(importance: Array, count: int, pairs: bool) -> Array:
    """The ``count`` most important channels of each head, ascending: (layers, Hkv, count) int32."""
    if pairs:
        half = importance.shape[2] // 2
        importance = np.tile(importance[..., :half] + importance[..., half:], 2)  # the two halves rotate together
        first = np.argsort(-importance[..., :half], -1, kind="stable")[..., : count // 2]
        best = np.concatenate([first, first + half], -1)
    else:
        best = np.argsort(-importance, -1, kind="stable")[..., :count]
    return np.ascontiguousarray(np.sort(best, -1), np.int32)


def _importance(found: Calibration, by: str, facts: Facts) -> Array:
    shape = (facts.layers, facts.kv_heads, facts.head_dim)
    tensor = found.tensors.get(by)
    if tensor is None or tensor.shape != shape or not np.isfinite(tensor).all():
        raise _wrong("calibration", f"must hold finite numbers {by!r} of shape {shape}: make it anew")
    return tensor


def _check(p: Params, facts: Facts) -> None:
    if not 1 <= p.channels <= facts.head_dim:
        raise _wrong("channels", f"must be between 1 and the head's {facts.head_dim}")
    if p.bits not in {4, 16}:
        raise _wrong("bits", "must be 4 or 16")
    if p.pairs and p.channels % 2:
        raise _wrong("channels", "must be even when pairs are chosen")
    if p.sink < 0 or p.recent < 1:
        raise _wrong("recent", "must be at least 1, and sink at least 0")
    if p.budget < max(_LEAST, p.sink + p.recent):
        raise _wrong("budget", f"must be at least {_LEAST}, and hold sink and recent")
    if not 0 <= p.share <= 1:
        raise _wrong("share", "must be between 0 and 1")
    if p.by not in {"qk", "q", "k"}:
        raise _wrong("by", "must be qk, q or k")
    if not 0 <= p.dense_layers < facts.layers:
        raise _wrong("dense_layers", f"must be between 0 and {facts.layers - 1}: a layer is left to be sparse")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"select": DoubleSparsity(p, facts)}
