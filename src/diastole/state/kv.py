"""PagedKV: key and value rows in pages that native kernels read: f32, bf16 or int8, the latter two also by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diastole.slots import Companion
from diastole.state.arena import Arena, layered
from diastole.state.pages import PAGE
from diastole.state.passive import Passive
from diastole.types import Array, KVFormat, PagedSpec

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class PagedKV(Passive):
    """The default ``kv`` policy: rows as they are, in one number format.

    int8 and rows8 keep one scale per token and head; their error is about half a percent of a row's largest value.

    Args:
        fmt: form of the rows.
        by_token: form for who picks single tokens, in as many bits; None: the same.
    """

    def __init__(self, fmt: KVFormat = "bf16", by_token: KVFormat | None = None) -> None:
        self.fmt: KVFormat = fmt
        self._by_token = by_token
        self.layout = f"paged-{fmt}"
        self.bytes_per_token = 0.0
        self.buffers: list[Array] = []
        self._companions: list[Companion] = []

    @property
    def bare(self) -> bool:
        return not self._companions

    def suit(self, prefers: KVFormat) -> None:
        if prefers == "rows" and self._by_token is not None:
            self.fmt = self._by_token

    def attach(self, companion: Companion) -> None:
        self._companions.append(companion)

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        self._ops, self._spec = ops, spec
        size = ops.kv_page_bytes(self.fmt, spec.head_dim)
        self.buffers = layered(ops, spec.layers, (pages, spec.kv_heads, size))
        beside = "".join(f"+{c.layout}" for c in self._companions)
        self.layout = f"paged-{self.fmt}-{spec.layers}x{spec.kv_heads}x{spec.head_dim}{beside}"
        companions = (a for c in self._companions for a in c.alloc(spec, pages, ops))
        self._all = Arena(self.layout, [*self.buffers, *companions])
        self.bytes_per_token = self._all.page_bytes / PAGE

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        self._ops.kv_write(self.buffers[layer], self.fmt, rows, k, v)
        for companion in self._companions:
            companion.write(layer, rows, k, v)

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        shape = (len(rows), self._spec.kv_heads, self._spec.head_dim)
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._ops.kv_read(self.buffers[layer], self.fmt, rows, k, v)
        return k, v

    def attend(
        self,
        layer: int,
        q: Array,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        self._ops.attend(q, self.buffers[layer], self.fmt, tables, starts, lo, hi, scale, out, lse)

    def copy_page(self, src: int, dst: int) -> None:
        self._all.copy_page(src, dst)

    def pack(self, pages: Sequence[int]) -> Array:
        return self._all.pack(pages)

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        self._all.unpack(pages, data)
