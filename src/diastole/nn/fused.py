"""Fused execution: a decoder's whole step in one native call.

It runs the same operators in the same order as ``Decoder`` does block by block, so the logits are the same bits; it
only saves coming back to Python between them. It is possible when the operators offer it (``ops.fuse``). Where policies
act inside the layers, or the store is not to be written by others, the call comes back once per layer, for what lies
between the projections, unless these can do that natively too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.nn.arena import Arena
from diastole.types import Array, Batch

if TYPE_CHECKING:
    from diastole.nn.decoder import Block, Decoder
    from diastole.nn.inside import Inside
    from diastole.nn.linear import Linear
    from diastole.slots import KVStore


_NONE = np.empty((0, 2), np.int64)


class FusedDecoder:
    """The native twin of a ``Decoder``, which keeps its arrays alive."""

    def __init__(self, decoder: Decoder, native: Any) -> None:
        attn, mlp = decoder.blocks[0].attn, decoder.blocks[0].mlp
        self._layers = [block.attn for block in decoder.blocks]
        (embed,) = _parts(decoder.embed)
        self._vocab, self._arena = decoder.head.n, Arena()
        self._alike = all(a.window is None and a.scale == attn.scale for a in self._layers)
        self._native = native(
            embed[2],
            attn.heads,
            attn.kv_heads,
            attn.head_dim,
            mlp.act == "gelu_tanh",
            decoder.embed_scale,
            embed,
            _parts(decoder.head),
            decoder.norm.weight,
            decoder.norm.eps,
        )
        for block in decoder.blocks:
            self._native.add(*_layer(block))

    def forward(self, b: Batch, buffers: Sequence[Array], fmt: str) -> Array:
        """See ``Decoder.forward``; buffers: each layer's pages, in the store's number format."""
        logits = self._arena.get("logits", len(b.want), self._vocab)
        also = _NONE if b.also is None else b.also
        self._native.step(buffers, fmt, b.inputs, b.pos, b.rows, also, b.tables, b.starts, b.lo, b.hi, b.want, logits)
        return logits

    def part(self, b: Batch, buffers: Sequence[Array], fmt: str, x: Array, first: int, last: int) -> None:
        """See ``Decoder.part``."""
        also = _NONE if b.also is None else b.also
        self._native.part(buffers, fmt, first, last, b.pos, b.rows, also, b.tables, b.starts, b.lo, b.hi, x)

    def forward_around(self, b: Batch, kv: KVStore, inside: Inside) -> Array:
        """The same, with what acts inside the layers."""
        logits, t, first = self._arena.get("logits", len(b.want), self._vocab), len(b.inputs), self._layers[0]
        qkv = self._arena.get("qkv", t, first.heads + 2 * first.kv_heads, first.head_dim)
        seen = self._arena.get("heads", t, first.heads, first.head_dim)

        def between(layer: int) -> None:
            self._layers[layer].mix(layer, qkv, b, kv, inside, seen, self._arena)

        own = inside.between(b, kv, self._native, first.scale) if self._alike else None
        self._native.step_around(b.inputs, b.pos, b.want, logits, qkv, seen, own or between)
        return logits

    def phases(self) -> dict[str, float]:
        """Seconds in each phase of the steps since the last call."""
        laps: dict[str, float] = self._native.laps()
        return laps


def _parts(linear: Linear) -> list[tuple[str, int, int, Array]]:
    return [(p.fmt, p.n, p.k, p.data) for p in linear.parts]


def _layer(block: Block) -> tuple[Any, ...]:
    attn, mlp = block.attn, block.mlp

    def weight(norm: Any) -> Array | None:
        return None if norm is None else norm.weight

    return (
        _parts(attn.qkv),
        attn.qkv.bias,
        _parts(attn.o),
        attn.o.bias,
        _parts(mlp.gate_up),
        _parts(mlp.down),
        block.attn_norm.weight,
        block.mlp_norm.weight,
        weight(block.attn_post),
        weight(block.mlp_post),
        weight(attn.q_norm),
        weight(attn.k_norm),
        attn.rope,
        attn.window or 0,
        attn.scale,
        block.attn_norm.eps,
    )
