"""Synthetic geometry: attention alone over random keys and values, for speed and bytes at any length.

Nothing here was learnt, so nothing here tells about quality: a random query looks at everything alike. What it tells is
how time and memory grow with the length, up to contexts that no model at hand has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diastole.kernels.table import Ops
from diastole.slots import KVStore
from diastole.state.lease import Lease
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, PagedSpec, UserError

MOST_TOKENS = 2**20
_BLOCK = 4096  # rows written at a time: bounds the float32 copy


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a model's attention. ``layers`` may be fewer than the model's: time and bytes grow with them alike.

    Args:
        heads: of queries.
        kv_heads: of keys and values; divides ``heads``.
        head_dim: numbers of one head.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def spec(self) -> PagedSpec:
        return PagedSpec(self.layers, self.kv_heads, self.head_dim)


SMOLLM2 = Geometry("synthetic-smollm2-135m", 30, 9, 3, 64)
WIDE = Geometry("synthetic-wide", 4, 32, 8, 128)  # as one eighth of an 8B Llama's layers


class Synthetic:
    """Streams of random keys and values in a store's pages, ready to be attended to.

    >>> field = Synthetic(replace(SMOLLM2, layers=1), PagedKV("bf16"), ops, lengths=(131_072,))
    >>> out = field.attend(0, field.queries())

    Args:
        store: a ``kv`` policy that nobody else uses.
        lengths: tokens of each stream.
        seed: of keys, values and queries.
        most_bytes: of state, at most.
        spare: tokens for which each stream has room beyond its own.

    Raises:
        UserError: the lengths are out of range or their state would take more.
    """

    def __init__(
        self,
        geometry: Geometry,
        store: KVStore,
        ops: Ops,
        lengths: Sequence[int],
        seed: int = 0,
        most_bytes: int = 2 * 2**30,
        spare: int = 0,
    ) -> None:
        if not lengths or not all(1 <= n <= MOST_TOKENS for n in lengths):
            raise UserError(f"lengths must lie between 1 and {MOST_TOKENS:,} tokens", param="lengths")
        self.geometry, self.store, self.lengths = geometry, store, tuple(lengths)
        self.name = geometry.name
        pages = sum(-(-(n + spare) // PAGE) for n in lengths)
        store.alloc(geometry.spec, 1, ops)  # tells bytes_per_token
        self.bytes = int(pages * PAGE * store.bytes_per_token)
        if self.bytes > most_bytes:
            raise UserError(
                f"{geometry.layers} layers of {sum(lengths):,} tokens take {self.bytes:,} bytes, more than "
                f"{most_bytes:,}: use fewer layers or tokens",
                param="lengths",
            )
        store.alloc(geometry.spec, pages, ops)
        self.pool = PagePool(pages, store)
        self._rng = np.random.default_rng(seed)
        self.leases = [self._fill(n) for n in lengths]
        self.tables = self.pool.tables(self.leases)
        self.starts = np.arange(len(lengths) + 1, dtype=np.int32)
        self.lo = np.zeros(len(lengths), np.int32)
        self.hi = np.array(lengths, np.int32)

    def _fill(self, n: int) -> Lease:
        g, lease = self.geometry, self.pool.lease()
        self.pool.grow(lease, n)
        table = self.pool.tables([lease])
        for at in range(0, n, _BLOCK):
            unit = np.arange(at, min(at + _BLOCK, n), dtype=np.int32)
            rows = self.pool.rows(table, np.zeros_like(unit), unit)
            for layer in range(g.layers):
                k, v = (self._normal(len(rows), g.kv_heads, g.head_dim) for _ in range(2))
                self.store.write(layer, rows, k, v)
        return lease

    def _normal(self, *shape: int) -> Array:
        return self._rng.standard_normal(shape, np.float32)

    def queries(self) -> Array:
        """(streams, heads, head_dim): new random queries of one decode step."""
        return self._normal(len(self.lengths), self.geometry.heads, self.geometry.head_dim)

    def attend(self, layer: int, q: Array) -> Array:
        """The store's own dense attention of one decode step: what others are measured beside."""
        out = np.empty_like(q)
        scale = self.geometry.head_dim**-0.5
        self.store.attend(layer, q, self.tables, self.starts, self.lo, self.hi, scale, out)
        return out
