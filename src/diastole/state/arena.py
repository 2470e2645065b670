"""Arena: arrays whose first axis counts pages, as the bytes behind a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diastole.types import Array


@dataclass(slots=True)
class Arena:
    """What belongs to a page is one item of each array.

    Args:
        layout: says who may unpack what was packed.
    """

    layout: str
    arrays: Sequence[Array]

    @property
    def page_bytes(self) -> int:
        return sum(a[:1].nbytes for a in self.arrays)

    def copy_page(self, src: int, dst: int) -> None:
        for array in self.arrays:
            array[dst] = array[src]

    def pack(self, pages: Sequence[int]) -> Array:
        """uint8 (len(pages), page_bytes)."""
        at = np.asarray(pages, np.int64)
        return np.concatenate([_bytes(a[at]) for a in self.arrays], axis=1)

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        """Write back what ``pack`` gave."""
        at = np.asarray(pages, np.int64)
        first = 0
        for array in self.arrays:
            size = array[:1].nbytes
            part = np.ascontiguousarray(data[:, first : first + size])
            array[at] = part.view(array.dtype).reshape(len(at), *array.shape[1:])
            first += size


def _bytes(pages: Array) -> Array:
    size = int(np.prod(pages.shape[1:]))
    return np.ascontiguousarray(pages).reshape(len(pages), size).view(np.uint8)
