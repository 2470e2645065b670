"""Target: what a served model computes for given tokens, for those who train something to foresee it."""

from __future__ import annotations

import numpy as np

from diastole.bench.rig import Rig
from diastole.nn.decoder import Decoder
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, PagedSpec


class Target:
    """The decoder of a rig over one sequence at a time, with the serving kernels and weights.

    Args:
        length: most tokens of a sequence.
    """

    def __init__(self, rig: Rig, length: int) -> None:
        self.decoder: Decoder = rig.decoder
        spec: PagedSpec = self.decoder.state_specs()["kv"]
        pages = -(-length // PAGE)
        self.store, self.length = PagedKV("bf16"), pages * PAGE
        self.store.alloc(spec, pages, self.decoder.ops)

    def read(self, ids: Array, pos: Array) -> Array:
        """Absorb ids (T,) int32 at these positions (T,) int32, which need not begin at 0; rows 0 to T - 1 hold them.
        Gives the final hidden states, normed: (T, d) float32."""
        rows, lo = np.arange(len(ids), dtype=np.int64), np.zeros(len(ids), np.int32)
        tables = np.arange(self.length // PAGE, dtype=np.int32)[None]
        starts, want = np.array([0, len(ids)], np.int32), np.empty(0, np.int32)
        hi = np.arange(1, len(ids) + 1, dtype=np.int32)
        batch = Batch((), (), np.ascontiguousarray(ids, np.int32), pos, starts, rows, tables, lo, hi, want)
        x = self.embedded(ids)
        self.decoder.part(batch, {"kv": self.store}, x, 0, len(self.decoder.blocks))
        return self.decoder.norm(x, x)

    def last_layer(self, n: int) -> tuple[Array, Array]:
        """Keys, as they are rotated, and values of the last layer: two (n, Hkv, D) float32."""
        return self.store.read(len(self.decoder.blocks) - 1, np.arange(n, dtype=np.int64))

    def embedded(self, ids: Array) -> Array:
        """ids (T,) int32 -> (T, d) float32."""
        return self.decoder.embedded(ids, np.empty((len(ids), self.decoder.width), np.float32))

    def head(self, ids: Array) -> Array:
        """Rows of the head: ids (n,) int32 -> (n, d) float32."""
        rows = np.empty((len(ids), self.decoder.width), np.float32)
        (table,) = self.decoder.head.parts
        self.decoder.ops.embed(table, np.ascontiguousarray(ids, np.int32), rows)
        return rows
