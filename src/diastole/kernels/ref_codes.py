"""The operators on pages of codes, in plain numpy, those of csrc/zip.inl to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np

from diastole.kernels import codes
from diastole.kernels.ref_parts import PAGE, cells
from diastole.types import Array

_both = zip  # a parameter of some methods has its name


class CodeTwins:
    """See ``picking.Picking``. Pages of rows are of float32, as ``ref.TorchOps`` keeps them."""

    def attend(self, *args: Any, **more: Any) -> None:
        """Of whoever inherits this."""
        raise NotImplementedError

    def zip_page_bytes(self, dim: int, fine: int) -> int:
        return codes.page_bytes(dim, fine)

    def zip_seal(self, raw: Array, slots: Array, zip: Array, pages: Array, masks: Array, fine: int) -> None:
        cache = cells(raw)[slots]  # (n, Hkv, 2, 64, D)
        flat = cache.reshape(-1, *cache.shape[2:])
        bits = np.unpackbits(masks.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little").astype(bool)
        zip[pages] = codes.seal(flat[:, 0], flat[:, 1], bits).reshape(len(pages), zip.shape[1], -1)

    def zip_open(self, zip: Array, pages: Array, fine: int, k: Array, v: Array) -> None:
        n, _, heads, dim = k.shape
        own = codes.unseal(zip[pages].reshape(n * heads, -1), dim, fine)
        for out, x in _both(own, (k, v)):
            x[...] = out.reshape(n, heads, PAGE, dim).swapaxes(1, 2)

    def zip_attend(
        self,
        q: Array,
        zip: Array,
        raw: Array,
        slots: Array,
        fine: int,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        both = np.empty((len(zip), zip.shape[1], 2, PAGE, q.shape[2]), np.float32)
        sealed = np.flatnonzero(slots < 0).astype(np.int32)
        shape = (len(sealed), PAGE, zip.shape[1], q.shape[2])
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.zip_open(zip, sealed, fine, k, v)
        both[sealed, :, 0], both[sealed, :, 1] = k.swapaxes(1, 2), v.swapaxes(1, 2)
        own = np.flatnonzero(slots >= 0)
        both[own] = cells(raw)[slots[own]]
        pages = both.reshape(len(zip), zip.shape[1], -1).view(np.uint8)
        self.attend(q, pages, "bf16", tables, starts, lo, hi, scale, out, lse)
