"""Transfer: pseudo rows stand for tokens that are not known yet, and go through the upper layers beside real ones.

Wu et al., "Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration", 2024,
arXiv 2404.12022. Of a real row i, the source, after layer t_n a learned map makes the state of position i + n:

    p_n = h + W_n h        n = 1 .. N, t_1 <= .. <= t_N

It sees what its source sees, the source itself, and p_1 .. p_n of the same source. Real rows take the way that they
always take and never see pseudo rows, and keys and values of pseudo rows live in the arrays of one layer: so nothing
that is real depends on them. After the last layer p_n tells of token i + 1 + n, for a part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.heads.glide import quantized
from diastole.nn.arena import Arena
from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.linear import Linear
from diastole.types import Array, Batch

if TYPE_CHECKING:
    from diastole.slots import KVStore


@dataclass(frozen=True, slots=True)
class Sources:
    """Rows of a batch from which pseudo rows are made, S of them, as attention wants to know them."""

    rows: Array  # (S,) of the batch, ascending
    pos: Array  # (S,) int32
    lo: Array  # (S,) int32: what each sees
    hi: Array  # (S,) int32
    tables: Array  # (B, P) int32: pages of those streams and branches that have any
    counts: Array  # (B,): how many each has

    @classmethod
    def of(cls, b: Batch, rows: Array) -> Sources:
        """rows (S,): of the batch, ascending, none twice."""
        owner = np.searchsorted(b.starts, rows, side="right") - 1
        own, counts = np.unique(owner, return_counts=True)
        return cls(rows, b.pos[rows], b.lo[rows], b.hi[rows], np.ascontiguousarray(b.tables[own]), counts)


class Transfer:
    """The maps with the layers above them.

    Args:
        target: whose layers, final norm and head are shared.
        tensors: ``maps`` (N, d, d) float16, ``layers`` (N,) int32: after so many layers each begins, and ``vocab`` (n,)
            int32: ids that can be told.
        offsets: how many of the maps are used at most.

    Raises:
        KeyError, ValueError: a tensor is missing or does not fit the target.
    """

    def __init__(self, target: Decoder, tensors: Mapping[str, Array], offsets: int) -> None:
        maps, layers, d = tensors["maps"], _whole(tensors, "layers"), target.width
        if maps.ndim != 3 or maps.shape[1:] != (d, d) or not 1 <= len(maps) == len(layers):
            raise ValueError(f"maps must be {d} x {d}, one for each of {len(layers)} layers, not {maps.shape}")
        if not np.isfinite(maps).all():
            raise ValueError("maps must hold finite numbers")
        depth = len(target.blocks)
        if sorted(layers) != layers or not 1 <= layers[0] <= layers[-1] <= depth:
            raise ValueError(f"layers must rise from 1 to {depth} at most, not {layers}")
        self.target, self.ops, self.vocab = target, target.ops, np.array(_whole(tensors, "vocab"), np.int32)
        self.layers: list[int] = layers[:offsets]
        self._maps = [Linear(self.ops, [self.ops.pack_bf16(m.astype(np.float32))]) for m in maps[:offsets]]
        self._head = part_of_head(target, self.vocab)
        self._real, self._arena = Arena(), Arena()

    def forward(self, b: Batch, state: Mapping[str, Any], rows: Array) -> tuple[Array, Array]:
        """The way of a batch through the model with pseudo rows of the sources ``rows`` (S,), ascending.

        Returns:
            logits of the wanted rows (W, V), until the next call, to the bits of ``Decoder.forward``; and the last
            states of pseudo rows (S, N, d), normed.
        """
        target, first, depth = self.target, self.layers[0], len(self.target.blocks)
        x = target.embedded(b.inputs, self._real.get("x", len(b.inputs), target.width))
        target.part(b, state, x, 0, first)
        at = Sources.of(b, rows)
        p = np.empty((len(rows), 0, target.width), np.float32)
        for layer in range(first, depth):
            p = self._begun(layer, p, x, rows)
            target.part(b, state, x, layer, layer + 1)
            self._layer(layer, p, at, state["kv"])
        p = self._begun(depth, p, x, rows)
        if b.tap is not None:
            target.norm(x[b.tap.rows], b.tap.hidden)
        logits = target.logits(x[b.want])
        return logits, target.norm(p, p)

    def logits(self, states: Array) -> Array:
        """What pseudo rows tell: last states (R, d) -> (R, n), until the next call."""
        return self._head(states, self._arena.get("logits", len(states), self._head.n))

    def _begun(self, layer: int, p: Array, x: Array, rows: Array) -> Array:
        """p (S, m, d) with the rows that begin before this layer, made of the sources' states."""
        new = [w for t, w in zip(self.layers, self._maps, strict=True) if t == layer]
        if not new:
            return p
        sources = x[rows]
        return np.concatenate([p, np.stack([w(sources, sources.copy(), True) for w in new], 1)], 1)

    def _layer(self, layer: int, p: Array, at: Sources, kv: KVStore) -> None:
        """One layer over pseudo rows p (S, m, d), in place; real rows have written theirs."""
        block, x = self.target.blocks[layer], p.reshape(-1, p.shape[-1])
        attn = block.attn
        normed = block.attn_norm(x, self._arena.get("normed", *x.shape))
        qkv = self._qkv(attn, normed, at, p.shape[1])
        seen = self._attend(layer, attn, qkv, at, kv)
        _add(block, x, seen.reshape(len(x), -1), self._arena)
        block.ffn(x, self._arena)

    def _qkv(self, attn: Attention, x: Array, at: Sources, m: int) -> Array:
        """x (S m, d), normed -> rotated queries and keys, and values (S, m, H + 2 Hkv, D)."""
        h, g, d = attn.heads, attn.kv_heads, attn.head_dim
        qkv = attn.qkv(x, self._arena.get("qkv", len(x), (h + 2 * g) * d)).reshape(len(x), h + 2 * g, d)
        if attn.q_norm is not None and attn.k_norm is not None:
            attn.q_norm(qkv[:, :h], qkv[:, :h])
            attn.k_norm(qkv[:, h : h + g], qkv[:, h : h + g])
        pos = at.pos[:, None] + np.arange(1, m + 1, dtype=np.int32)
        pos = np.minimum(pos, len(attn.rope) - 1)  # what lies beyond the context is never said
        self.ops.rope(qkv[:, : h + g], np.ascontiguousarray(pos.reshape(-1), np.int32), attn.rope)
        return qkv.reshape(len(at.rows), m, h + 2 * g, d)

    def _attend(self, layer: int, attn: Attention, qkv: Array, at: Sources, kv: KVStore) -> Array:
        """qkv (S, m, H + 2 Hkv, D) -> (S, m, H, D): over what the source sees on its pages, and over pseudo rows of the
        same source up to the own one, merged by log-sum-exp."""
        s, m, _, d = qkv.shape
        h, g = attn.heads, attn.kv_heads
        starts = np.concatenate([[0], np.cumsum(at.counts * m)]).astype(np.int32)
        lo, hi = np.repeat(at.lo, m), np.repeat(at.hi, m)
        far, lse = self._arena.get("heads", s * m, h, d), self._arena.get("lse", s * m, h)
        q = qkv.reshape(s * m, h + 2 * g, d)[:, :h]
        kv.attend(layer, q, at.tables, starts, lo, hi, attn.scale, far, lse)
        grouped = qkv[:, :, :h].reshape(s, m, g, h // g, d)
        scores = np.einsum("smghd,sjgd->smghj", grouped, qkv[:, :, h : h + g]) * np.float32(attn.scale)
        earlier = np.tri(m, dtype=bool)[None, :, None, None]
        scores = np.where(earlier, scores, np.float32(-np.inf))
        before = lse.reshape(s, m, g, h // g)
        most = np.maximum(scores.max(-1), before)
        weights, past = np.exp(scores - most[..., None]), np.exp(before - most)[..., None]
        near = np.einsum("smghj,sjgd->smghd", weights, qkv[:, :, h + g :])
        merged: Array = (near + far.reshape(grouped.shape) * past) / (weights.sum(-1, keepdims=True) + past)
        return merged


def _whole(tensors: Mapping[str, Array], name: str) -> list[int]:
    found = tensors[name]
    if found.ndim != 1 or found.dtype.kind != "i":
        raise ValueError(f"{name} must be whole numbers in a row, not {found.shape} of {found.dtype}")
    numbers: list[int] = found.tolist()
    return numbers


def _add(block: Block, x: Array, seen: Array, arena: Arena) -> None:
    """x (R, d) += what attention adds; seen (R, H D)."""
    if block.attn_post is None:
        block.attn.o(seen, x, accumulate=True)
    else:
        x += block.attn_post(block.attn.o(seen, arena.get("added", *x.shape)), arena.get("added_normed", *x.shape))


def part_of_head(target: Decoder, vocab: Array) -> Linear:
    """The head's rows of these ids (n,) int32 alone, in eight bits.

    Raises:
        ValueError: an id is none of the target's.
    """
    if vocab.ndim != 1 or not len(vocab) or vocab.min() < 0 or vocab.max() >= target.vocab:
        raise ValueError("vocab must hold ids of the target's vocabulary")
    return Linear(target.ops, [target.ops.pack_q8(*quantized(matrix(target.head, vocab)))])


def matrix(linear: Linear, rows: Array | None = None) -> Array:
    """A packed matrix, or some rows (n,) int32 of one that is packed in one part, as numbers (n, K) float32."""
    found: list[Array] = []
    for part in linear.parts:
        ids = np.arange(part.n, dtype=np.int32) if rows is None else rows
        found.append(np.empty((len(ids), part.k), np.float32))
        linear.ops.embed(part, ids, found[-1])
    return np.concatenate(found)
