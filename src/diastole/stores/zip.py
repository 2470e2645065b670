"""ZipKV: key and value rows in bf16 until their page is sealed, as codes of four and two bits from then on.

    page id      0   1   2   3   4   5            every page has a place among the codes, which only sealed ones use
    slots       -1  -1  -1   0   2  -1            and a slot among the fewer pages in bf16 while it may be written to

What is sealed never changes. Which of its tokens keep four bits is said by their saliency: what a probe has added up
for them, which lies beside the pages in bf16 and is gone when they are sealed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diastole.slots import Companion
from diastole.state.arena import layered
from diastole.state.lease import Lease
from diastole.state.pages import PAGE
from diastole.state.passive import Passive
from diastole.types import Array, PagedSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class ZipKV(Passive):
    """A store, and the rooms of its pages.

    Args:
        fine: tokens of a page that keep four bits, a multiple of 4; None: nothing is ever sealed.
        most: pages that one stream has in bf16 at once, at most.
        share: of all pages, so many may be in bf16 at once, but never fewer than ``most``.
    """

    fmt = "zip"
    buffers = None
    bare = passive = False

    def __init__(self, fine: int | None, most: int, share: float) -> None:
        self.seals, self.fine, self.most, self.share = fine is not None, fine or 0, most, share
        self.layout = ""
        self.bytes_per_token = 0.0
        self.leases: Collection[Lease] = ()

    def attach(self, companion: Companion) -> None:
        raise UserError(f"zipcache keeps nothing beside its pages, such as {companion.layout!r}", param="use")

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        self._ops, self._spec = ops, spec
        layers, heads, dim = spec.layers, spec.kv_heads, spec.head_dim
        raw = min(max(self.most, round(pages * self.share)), pages) if self.seals else pages
        sizes = ops.zip_page_bytes(dim, self.fine), ops.kv_page_bytes("bf16", dim)
        self.zip, self.raw = (
            layered(ops, layers, (n, heads, size)) for n, size in zip((pages, raw), sizes, strict=True)
        )
        self.saliency = ops.alloc(layers * raw * heads * PAGE * 4).view(np.float32).reshape(layers, raw, heads, PAGE)
        self.slots = np.full(pages, -1, np.int32) if self.seals else np.arange(pages, dtype=np.int32)
        self._free = list(range(raw - 1, -1, -1))
        self._last: tuple[Array, Array] | None = None
        self.sealed_bytes = layers * heads * sizes[0]  # of a page
        self.raw_bytes = layers * heads * (sizes[1] + PAGE * 4)
        self.layout = f"zip-{self.fine if self.seals else 16}-{layers}x{heads}x{dim}"
        page = self.sealed_bytes + self.share * self.raw_bytes if self.seals else self.raw_bytes
        self.bytes_per_token = page / PAGE

    def held(self, pages: Sequence[int]) -> int:
        """Bytes that these pages take now, parameters and saliency included."""
        raw = int((self.slots[list(pages)] >= 0).sum())
        return raw * self.raw_bytes + (len(pages) - raw) * self.sealed_bytes

    # ---- rooms

    @property
    def rooms(self) -> ZipKV | None:
        return self if self.seals else None

    @property
    def free(self) -> int:
        """Pages that could be had in bf16 now."""
        return len(self._free)

    def take(self, page: int) -> None:
        """This page will be written to."""
        slot = self.slots[page] = self._free.pop()
        self.saliency[:, slot] = 0

    def give(self, page: int) -> None:
        """It will not any more."""
        if self.slots[page] >= 0:
            self._free.append(int(self.slots[page]))
            self.slots[page] = -1

    def lacks(self, page: int) -> bool:
        return False

    def wanted(self, data: Array) -> int:
        """Of packed pages, those that need a slot."""
        count = int(data[:8].view(np.int64)[0])
        return int(data[8 : 8 + count].sum())

    # ---- rows

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        if self._last is None or self._last[0] is not rows:
            self._last = rows, self.slots[rows // PAGE].astype(np.int64) * PAGE + rows % PAGE
        self._ops.kv_write(self.raw[layer], "bf16", self._last[1], k, v)

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        pages, at = rows // PAGE, rows % PAGE
        slots = self.slots[pages]
        shape = (len(rows), self._spec.kv_heads, self._spec.head_dim)
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        raw = slots >= 0
        own = np.empty((2, int(raw.sum()), *shape[1:]), np.float32)
        self._ops.kv_read(self.raw[layer], "bf16", slots[raw].astype(np.int64) * PAGE + at[raw], own[0], own[1])
        k[raw], v[raw] = own
        ids, which = np.unique(pages[~raw], return_inverse=True)
        whole = np.empty((2, len(ids), PAGE, *shape[1:]), np.float32)
        self._ops.zip_open(self.zip[layer], ids.astype(np.int32), self.fine, whole[0], whole[1])
        k[~raw], v[~raw] = whole[:, which, at[~raw]]
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
        self._ops.zip_attend(
            q, self.zip[layer], self.raw[layer], self.slots, self.fine, tables, starts, lo, hi, scale, out, lse
        )

    def compress(self, pages: Sequence[int], seen: Array) -> None:
        """Seal pages. seen (n, 64): how many probes could see each token.

        The tokens with the largest saliency by that number keep four bits, of equal ones the first.
        """
        at = np.asarray(pages, np.int32)
        slots = self.slots[at]
        mean = self.saliency[:, slots] / np.maximum(seen, 1).astype(np.float32)[None, :, None]
        order = np.argsort(-mean, axis=-1, kind="stable")
        fine = np.zeros(mean.shape, bool)
        np.put_along_axis(fine, order[..., : self.fine], True, -1)
        masks = np.packbits(fine, axis=-1, bitorder="little").view(np.uint64)[..., 0]
        for layer, own in enumerate(masks):
            self._ops.zip_seal(self.raw[layer], slots, self.zip[layer], at, np.ascontiguousarray(own), self.fine)
        for page in pages:
            self.give(page)

    # ---- pages on the move

    def copy_page(self, src: int, dst: int) -> None:
        if self.slots[src] < 0:
            self.give(dst)
            for buffer in self.zip:
                buffer[dst] = buffer[src]
            return
        a, b = self.slots[src], self.slots[dst]
        for buffer in self.raw:
            buffer[b] = buffer[a]
        self.saliency[:, b] = self.saliency[:, a]

    def pack(self, pages: Sequence[int]) -> Array:
        """Which of them are in bf16, a byte each; codes of the others; these with their saliency."""
        at = np.asarray(pages, np.int64)
        slots = self.slots[at]
        raw = slots >= 0
        parts = [np.array([len(at)], np.int64).view(np.uint8), raw.view(np.uint8)]
        parts += [b[at[~raw]].reshape(-1) for b in self.zip]
        parts += [b[slots[raw]].reshape(-1) for b in self.raw]
        return np.concatenate([*parts, np.ascontiguousarray(self.saliency[:, slots[raw]]).reshape(-1).view(np.uint8)])

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        at = np.asarray(pages, np.int64)
        raw = data[8 : 8 + len(at)].astype(bool)
        for page in at[raw] if self.seals else ():
            self.take(int(page))
        slots = self.slots[at[raw]]
        first = 8 + len(at)
        for buffers, places in ((self.zip, at[~raw]), (self.raw, slots)):
            for buffer in buffers:
                size = len(places) * buffer[0].nbytes
                buffer[places] = data[first : first + size].reshape(len(places), *buffer.shape[1:])
                first += size
        saliency = np.ascontiguousarray(data[first:]).view(np.float32)
        self.saliency[:, slots] = saliency.reshape(len(self.saliency), len(slots), *self.saliency.shape[2:])
