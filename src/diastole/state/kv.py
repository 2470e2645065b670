"""PagedKV: key and value rows in the pages that the native kernels read, as f32, bf16 or int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diastole.state.pages import PAGE
from diastole.types import Array, KVFormat, PagedSpec

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class PagedKV:
    """The default ``kv`` policy: rows as they are, in one number format.

    int8 keeps one scale per token and head; its error is about half a percent of a row's largest value.
    """

    def __init__(self, fmt: KVFormat = "bf16") -> None:
        self.fmt: KVFormat = fmt
        self.layout = f"paged-{fmt}"
        self.bytes_per_token = 0.0
        self.buffers: list[Array] = []

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        self._ops, self._spec = ops, spec
        size = ops.kv_page_bytes(self.fmt, spec.head_dim)
        self.layout = f"paged-{self.fmt}-{spec.layers}x{spec.kv_heads}x{spec.head_dim}"
        self.bytes_per_token = spec.layers * spec.kv_heads * size / PAGE
        shape = (pages, spec.kv_heads, size)
        self.buffers = [ops.alloc(pages * spec.kv_heads * size).reshape(shape) for _ in range(spec.layers)]

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        self._ops.kv_write(self.buffers[layer], self.fmt, rows, k, v)

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        shape = (len(rows), self._spec.kv_heads, self._spec.head_dim)
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._ops.kv_read(self.buffers[layer], self.fmt, rows, k, v)
        return k, v

    def attend(
        self, layer: int, q: Array, tables: Array, starts: Array, lo: Array, hi: Array, scale: float, out: Array
    ) -> None:
        self._ops.attend(q, self.buffers[layer], self.fmt, tables, starts, lo, hi, scale, out, None)

    def copy_page(self, src: int, dst: int) -> None:
        for buffer in self.buffers:
            buffer[dst] = buffer[src]

    def pack(self, pages: Sequence[int]) -> Array:
        at = np.asarray(pages, np.int64)
        return np.concatenate([b[at].reshape(len(at), -1) for b in self.buffers], axis=1)

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        at = np.asarray(pages, np.int64)
        for buffer, part in zip(self.buffers, np.split(data, len(self.buffers), axis=1), strict=True):
            buffer[at] = part.reshape(len(at), *buffer.shape[1:])
