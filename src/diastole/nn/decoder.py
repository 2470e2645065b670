"""Decoder: the residual stack that every decoder-only language model here is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.attention import Attention
from diastole.nn.fused import FusedDecoder
from diastole.nn.inside import NOBODY, Inside
from diastole.nn.linear import Linear
from diastole.nn.mlp import GatedMLP
from diastole.nn.norm import RMSNorm
from diastole.slots import Facts, KVStore
from diastole.types import Array, Batch, PagedSpec

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. ``mix`` and ``ffn`` are the seam where a layer may be cut in two."""

    attn_norm: RMSNorm
    attn: Attention
    mlp_norm: RMSNorm
    mlp: GatedMLP
    attn_post: RMSNorm | None = None  # norms of what is added, where a family has them
    mlp_post: RMSNorm | None = None

    def mix(self, layer: int, x: Array, b: Batch, kv: KVStore, inside: Inside, arena: Arena) -> None:
        """x (T, d) += attention(norm(x))."""
        normed = self.attn_norm(x, arena.get("normed", *x.shape))
        _add(x, self.attn.o, self.attn(layer, normed, b, kv, inside, arena), self.attn_post, arena)

    def ffn(self, x: Array, arena: Arena) -> None:
        """x (T, d) += mlp(norm(x))."""
        normed = self.mlp_norm(x, arena.get("normed", *x.shape))
        _add(x, self.mlp.down, self.mlp(normed, arena), self.mlp_post, arena)


def _add(x: Array, last: Linear, inner: Array, post: RMSNorm | None, arena: Arena) -> None:
    if post is None:
        last(inner, x, accumulate=True)
    else:
        x += post(last(inner, arena.get("added", *x.shape)), arena.get("added_normed", *x.shape))


class Decoder:
    """Embedding, blocks, final norm, head.

    Args:
        embed: packed embedding table (V, d); ``head`` may be the same one.
        context: most positions that a stream may have.
    """

    caps = frozenset({"paged_kv"})

    def __init__(
        self,
        ops: Ops,
        embed: Linear,
        blocks: Sequence[Block],
        norm: RMSNorm,
        head: Linear,
        context: int,
        embed_scale: float = 1.0,
    ) -> None:
        self.ops, self.embed, self.blocks, self.norm, self.head = ops, embed, tuple(blocks), norm, head
        self.context, self.embed_scale = context, embed_scale
        (self._table,) = embed.parts
        self._arena = Arena()
        native = ops.fuse()
        self._fused = None if native is None else FusedDecoder(self, native)

    @property
    def vocab(self) -> int:
        return self.head.n

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self._table.k

    def facts(self, checkpoint: Checkpoint) -> Facts:
        """What techniques may know of this model, which was made from this checkpoint."""
        attn = self.blocks[0].attn
        return Facts(
            self.caps,
            len(self.blocks),
            attn.heads,
            attn.kv_heads,
            attn.head_dim,
            self.context,
            any(b.attn.window is not None for b in self.blocks),
            checkpoint.fingerprint,
            checkpoint.path,
            self.ops,
            attn.rope if all(b.attn.rope is attn.rope for b in self.blocks) else None,
            self,
        )

    def state_specs(self) -> dict[str, PagedSpec]:
        attn = self.blocks[0].attn
        return {"kv": PagedSpec(len(self.blocks), attn.kv_heads, attn.head_dim)}

    def forward(self, b: Batch, state: Mapping[str, Any]) -> Array:
        """b.inputs (T,) int32 ids -> logits of the wanted rows (W, V), until the next call: in one native call where
        the operators have it and nobody reads hidden states, else block by block, with the same bits.

        state: "kv", a KVStore, and "inside", what acts in the layers, if anybody does.
        """
        if b.relay is not None:
            return b.relay(self, b, state)
        kv: KVStore = state["kv"]
        inside: Inside = state.get("inside", NOBODY)
        if self._fused is None or b.tap is not None:
            return self.open_forward(b, kv, inside)
        if inside.idle and kv.buffers is not None and kv.bare:
            return self._fused.forward(b, kv.buffers, kv.fmt)
        return self._fused.forward_around(b, kv, inside)

    def embedded(self, ids: Array, out: Array) -> Array:
        """ids (T,) int32 -> out (T, d): what the first block reads."""
        self.ops.embed(self._table, ids, out)
        if self.embed_scale != 1.0:
            out *= np.float32(self.embed_scale)
        return out

    def phases(self) -> dict[str, float]:
        """Seconds that fused execution spent in each phase since the last call; empty where there is none."""
        return self._fused.phases() if self._fused is not None else {}

    def open_forward(self, b: Batch, kv: KVStore, inside: Inside = NOBODY) -> Array:
        """Block by block."""
        x = self.embedded(b.inputs, self._arena.get("x", len(b.inputs), self._table.k))
        self._open_part(b, kv, inside, x, 0, len(self.blocks))
        if b.tap is not None:
            self.norm(x[b.tap.rows], b.tap.hidden)
        return self.logits(x[b.want])

    def part(self, b: Batch, state: Mapping[str, Any], x: Array, first: int, last: int) -> None:
        """Blocks ``first`` to ``last`` - 1 over hidden states x (T, d) float32, in place: to the same bits as within a
        whole ``forward``. What the batch wants and taps is not looked at."""
        kv: KVStore = state["kv"]
        inside: Inside = state.get("inside", NOBODY)
        if self._fused is not None and inside.idle and kv.buffers is not None and kv.bare:
            self._fused.part(b, kv.buffers, kv.fmt, x, first, last)
        else:
            self._open_part(b, kv, inside, x, first, last)

    def _open_part(self, b: Batch, kv: KVStore, inside: Inside, x: Array, first: int, last: int) -> None:
        for layer in range(first, last):
            self.blocks[layer].mix(layer, x, b, kv, inside, self._arena)
            self.blocks[layer].ffn(x, self._arena)

    def logits(self, x: Array) -> Array:
        """Of hidden states x (W, d), which are used up: (W, V), until the next call."""
        logits = self._arena.get("logits", len(x), self.head.n)
        return self.head(self.norm(x, x), logits) if len(x) else logits
