"""Self-attention over a key/value store, written once for every decoder family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.inside import Inside
from diastole.nn.linear import Linear
from diastole.nn.norm import RMSNorm
from diastole.slots import KVStore, View
from diastole.types import Array, Batch

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention: project, rotate, store, attend, project back.

    ``qkv`` gives q (H·D), k (Hkv·D) and v (Hkv·D) side by side.
    """

    ops: Ops
    qkv: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Array  # (positions, rotated dims), see nn.rope
    window: int | None = None  # tokens seen, itself included; None: all
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None

    def __call__(self, layer: int, x: Array, b: Batch, kv: KVStore, inside: Inside, arena: Arena) -> Array:
        """x (T, d), normalised -> heads' outputs side by side (T, H·D); the caller applies ``o``."""
        t, h, g, d = len(x), self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv(x, arena.get("qkv", t, (h + 2 * g) * d)).reshape(t, h + 2 * g, d)
        q, k = qkv[:, :h], qkv[:, h : h + g]
        if self.q_norm is not None and self.k_norm is not None:
            self.q_norm(q, q)
            self.k_norm(k, k)
        self.ops.rope(qkv[:, : h + g], b.pos, self.rope)  # q and k lie side by side: one call rotates both
        out = arena.get("heads", t, h, d)
        self.mix(layer, qkv, b, kv, inside, out, arena)
        return out.reshape(t, h * d)

    def mix(self, layer: int, qkv: Array, b: Batch, kv: KVStore, inside: Inside, out: Array, arena: Arena) -> None:
        """Store and attend: qkv (T, H + 2 Hkv, D), rotated -> out (T, H, D)."""
        h, g = self.heads, self.kv_heads
        k, v = qkv[:, h : h + g], qkv[:, h + g :]
        kv.write(layer, b.rows, k, v)
        if b.also is not None:
            kv.write(layer, b.also[:, 1], k[b.also[:, 0]], v[b.also[:, 0]])
        lo = b.lo if self.window is None else np.maximum(b.lo, b.pos - (self.window - 1))
        inside.attend(View(layer, kv, self.ops, b, lo, self.scale), qkv[:, :h], out, arena)
