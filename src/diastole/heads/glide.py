"""Glide: a draft model of one block that borrows the target's embedding, head and last layer's keys and values.

Du et al., "GliDe with a CaPE", ICML 2024; Yang et al., "LongSpec", 2025, section 3. Its self-attention sees a window of
tokens; for everything older it attends to what the target keeps of them in its last layer.

    a = x + SA(norm(x))        own keys and values, a window
    b = a + CA(norm(a))        the target's last layer, tokens that it has absorbed
    c = b + MLP(norm(b))       logits = head(norm(c)), for a part of the vocabulary

What is guessed in one round is not written anywhere: its keys and values stay in the ``Round``, and attention over them
and over the window is merged by log-sum-exp, which is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Linear
from diastole.nn.mlp import GatedMLP
from diastole.nn.norm import RMSNorm
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

MATRICES = ("qkv", "o", "cross_q", "cross_o", "gate_up", "down")
VECTORS = ("norm_self", "norm_cross", "norm_mlp", "norm_out", "qkv_bias")


@dataclass(frozen=True, slots=True)
class Pages:
    """Keys and values of one layer, and where rows look in them."""

    buffer: Array  # (pages, Hkv, bytes)
    fmt: str
    tables: Array  # (B, P) int32
    starts: Array  # (B + 1,) int32
    lo: Array  # (T,) int32
    hi: Array  # (T,) int32


@dataclass(frozen=True, slots=True)
class Seen:
    """What rows see of this round's guesses: keys and values (B, M, Hkv, D) of each stream's, and which of these each
    row sees, itself included: mask (T, M); owner (T,): a row's stream."""

    k: Array
    v: Array
    mask: Array
    owner: Array


class Glide:
    """The block.

    Args:
        target: whose embedding, head, rotary table and geometry it shares.
        tensors: ``NAME.q`` (N, K) int8 with ``NAME.d`` (N, K/32) float16 of each of ``MATRICES``, ``VECTORS`` float32,
            and ``vocab`` (n,) int32: the ids that it can guess.

    Raises:
        KeyError, ValueError: a tensor is missing or has another shape than the target asks for.
    """

    def __init__(self, target: Decoder, tensors: Mapping[str, Array]) -> None:
        attn, ops = target.blocks[0].attn, target.ops
        self.ops, self.target, self.rope = ops, target, attn.rope
        self.heads, self.kv_heads, self.dim, self.scale = attn.heads, attn.kv_heads, attn.head_dim, attn.scale
        self.vocab = np.ascontiguousarray(tensors["vocab"], np.int32)
        width, side = target.width, self.heads * self.dim
        shapes = {
            "qkv": (side + 2 * self.kv_heads * self.dim, width),
            "o": (width, side),
            "cross_q": (side, width),
            "cross_o": (width, side),
            "gate_up": (len(tensors["gate_up.q"]), width),
            "down": (width, len(tensors["gate_up.q"]) // 2),
        }
        self._w = {name: _matrix(ops, tensors, name, shape) for name, shape in shapes.items()}
        bias = _vector(tensors, "qkv_bias", shapes["qkv"][0])
        self._w["qkv"] = Linear(ops, self._w["qkv"].parts, bias)
        self._norms = {
            name: RMSNorm(ops, _vector(tensors, name, width), target.norm.eps) for name in VECTORS if name != "qkv_bias"
        }
        self.mlp = GatedMLP(ops, self._w["gate_up"], self._w["down"], target.blocks[0].mlp.act)
        self._head = self._part_of_head()
        self._arena = Arena()
        self.hidden = np.empty((0, width), np.float32)  # what the head read last: (W, d)

    def _part_of_head(self) -> Linear:
        if not len(self.vocab) or self.vocab.min() < 0 or self.vocab.max() >= self.target.vocab:
            raise ValueError("vocab must hold ids of the target's vocabulary")
        rows = np.empty((len(self.vocab), self.target.width), np.float32)
        (table,) = self.target.head.parts
        self.ops.embed(table, self.vocab, rows)
        return Linear(self.ops, [self.ops.pack_q8(*quantized(rows))])

    def keys(self, ids: Array, pos: Array) -> tuple[Array, Array]:
        """ids, pos (T,) int32 -> x (T, d), and rotated queries with keys and values (T, H + 2 Hkv, D)."""
        t, h, g = len(ids), self.heads, self.kv_heads
        x = self._arena.get("x", t, self.target.width)
        self.target.embedded(ids, x)
        normed = self._norms["norm_self"](x, self._arena.get("normed", *x.shape))
        qkv = self._w["qkv"](normed, self._arena.get("qkv", t, (h + 2 * g) * self.dim)).reshape(t, h + 2 * g, self.dim)
        self.ops.rope(qkv[:, : h + g], pos, self.rope)
        return x, qkv

    def logits(self, x: Array, q: Array, pos: Array, own: Pages, seen: Seen | None, far: Pages, want: Array) -> Array:
        """Of rows want (W,): (W, n), until the next call. x (T, d) and q (T, H, D) of ``keys``; own: the window; seen:
        what of this round's guesses; far: the target's last layer."""
        out = self._attend(q, own, seen)
        self._w["o"](out.reshape(len(x), -1), x, accumulate=True)
        normed = self._norms["norm_cross"](x, self._arena.get("normed", *x.shape))
        q = self._w["cross_q"](normed, self._arena.get("cross", len(x), self.heads * self.dim))
        q = q.reshape(len(x), self.heads, self.dim)
        self.ops.rope(q, pos, self.rope)
        out = self._over(q, far, None)
        self._w["cross_o"](out.reshape(len(x), -1), x, accumulate=True)
        normed = self._norms["norm_mlp"](x, self._arena.get("normed", *x.shape))
        self.mlp.down(self.mlp(normed, self._arena), x, accumulate=True)
        last = x[want]
        self.hidden = self._norms["norm_out"](last, last)
        return self._head(self.hidden, self._arena.get("logits", len(want), len(self.vocab)))

    def _over(self, q: Array, p: Pages, lse: Array | None) -> Array:
        out = self._arena.get("heads", *q.shape)
        self.ops.attend(q, p.buffer, p.fmt, p.tables, p.starts, p.lo, p.hi, self.scale, out, lse)
        return out

    def _attend(self, q: Array, own: Pages, seen: Seen | None) -> Array:
        if seen is None:
            return self._over(q, own, None)
        lse = self._arena.get("lse", *q.shape[:2])
        out = self._over(q, own, lse)
        t, h, d = q.shape
        grouped = q.reshape(t, self.kv_heads, h // self.kv_heads, d)
        scores = np.einsum("tgsd,tmgd->tgsm", grouped, seen.k[seen.owner]) * np.float32(self.scale)
        scores = np.where(seen.mask[:, None, None], scores, -np.inf).reshape(t, h, -1)
        most = np.maximum(scores.max(-1), lse)
        weights = np.exp(scores - most[..., None])
        before = np.exp(lse - most)
        near = np.einsum("tgsm,tmgd->tgsd", weights.reshape(t, self.kv_heads, -1, scores.shape[-1]), seen.v[seen.owner])
        total = weights.sum(-1) + before
        merged: Array = (near.reshape(t, h, d) + out * before[..., None]) / total[..., None]
        return merged


def quantized(w: Array) -> tuple[Array, Array]:
    """w (N, K) -> eight-bit numbers (N, K) int8 and what they are multiplied with (N, K/32) float32."""
    groups = w.reshape(len(w), -1, 32)
    d = (np.abs(groups).max(-1) / 127).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    return np.clip(np.rint(groups * inverse[..., None]), -127, 127).astype(np.int8).reshape(w.shape), d


def _matrix(ops: Ops, tensors: Mapping[str, Array], name: str, shape: Sequence[int]) -> Linear:
    q, d = tensors[f"{name}.q"], tensors[f"{name}.d"]
    if q.shape != tuple(shape) or d.shape != (shape[0], shape[1] // 32) or q.dtype != np.int8:
        raise ValueError(f"{name} must be {shape[0]} x {shape[1]} in eight bits, not {q.shape} of {q.dtype}")
    scales = d.astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError(f"{name} must hold finite numbers")
    return Linear(ops, [ops.pack_q8(np.ascontiguousarray(q), scales)])


def _vector(tensors: Mapping[str, Array], name: str, size: int) -> Array:
    found = np.ascontiguousarray(tensors[name], np.float32)
    if found.shape != (size,) or not np.isfinite(found).all():
        raise ValueError(f"{name} must hold {size} finite numbers")
    return found
