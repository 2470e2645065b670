"""Multi-matrix factorization attention (MFA): many wide query heads through few numbers, one key/value head.

Source: Hu et al., "Multi-matrix Factorization Attention" (arXiv 2412.19255), section 3; as Step-3 has it, with a norm
between the two matrices of the queries (arXiv 2507.19427).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.inside import Inside
from diastole.nn.linear import Linear
from diastole.nn.norm import RMSNorm
from diastole.slots import KVStore
from diastole.types import Array, Batch, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diastole.kernels.table import Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class MFA(Attention):
    """q = wq(inter_norm(q0)); ``qkv`` gives q0 (C), k (D) and v (D) side by side.

    To the page kernel it is grouped-query attention with one group: a page's keys and values are read once for all
    heads of a row.
    """

    inter_norm: RMSNorm
    wq: Linear  # (H·D, C)

    def __call__(self, layer: int, x: Array, b: Batch, kv: KVStore, inside: Inside, arena: Arena) -> Array:
        """x (T, d), normalised -> heads' outputs side by side (T, H·D); the caller applies ``o``."""
        t, h, d = len(x), self.heads, self.head_dim
        low = self.qkv(x, arena.get("low", t, self.qkv.n))
        c = self.qkv.n - 2 * d
        qkv = arena.get("qkv", t, (h + 2) * d)
        q0 = self.inter_norm(low[:, :c], low[:, :c])
        self.wq(q0, qkv[:, : h * d])
        qkv[:, h * d :] = low[:, c:]
        split = qkv.reshape(t, h + 2, d)
        self.ops.rope(split[:, : h + 1], b.pos, self.rope)  # all of q and of k
        out = arena.get("heads", t, h, d)
        self.mix(layer, split, b, kv, inside, out, arena)
        return out.reshape(t, h * d)


def attends(ops: Ops, heads: int, dim: int) -> None:
    """Let the operators try so many heads of so many numbers over one key/value head.

    Raises:
        UserError: they cannot; ``param`` is "head_dim" or "num_attention_heads".
    """
    param = "head_dim"
    try:
        page = ops.alloc(ops.kv_page_bytes("bf16", dim)).reshape(1, 1, -1)
        ops.kv_write(page, "bf16", np.zeros(1, np.int64), *np.zeros((2, 1, 1, dim), np.float32))
        param = "num_attention_heads"
        q, table, one = np.zeros((1, heads, dim), np.float32), np.zeros((1, 1), np.int32), np.ones(1, np.int32)
        ops.attend(q, page, "bf16", table, np.array([0, 1], np.int32), one - 1, one, 1.0, np.empty_like(q))
    except ValueError as e:
        said = f"{heads} heads of {dim} numbers over one key/value head are more than the operators take: {e}"
        raise UserError(said, param=param) from None


class OpenDecoder(Decoder):
    """A decoder that runs block by block: the native step has no place between the two matrices of its queries."""

    def __init__(
        self, ops: Ops, embed: Linear, blocks: Sequence[Block], norm: RMSNorm, head: Linear, context: int
    ) -> None:
        self.ops, self.embed, self.blocks, self.norm, self.head = ops, embed, tuple(blocks), norm, head
        self.context, self.embed_scale = context, 1.0
        (self._table,) = embed.parts
        self._arena = Arena()
        self._fused = None
