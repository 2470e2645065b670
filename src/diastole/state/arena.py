"""Arena: arrays whose first axis counts pages, as the bytes behind a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

HUGE = 2 << 20  # bytes of the pages in which a system gives large memory
SMALL = 4096  # and of others
LINE = 64  # to which arrays are aligned


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


def layered(ops: Ops, layers: int, shape: Sequence[int]) -> list[Array]:
    """An array of bytes for each layer, zeroed, taken from the system only as it is touched: uint8 of this shape.

    A step writes the same pages of all layers. Would the system's pages begin at the same of ours in each, the steps
    that come to the next of them would wait for all (30 layers: 0.2 s), and the others for none. They begin at other
    ones in each layer.
    """
    size = prod(shape)
    step = -(-size // LINE) * LINE
    if size >= HUGE:
        apart = max(HUGE // layers // SMALL * SMALL, SMALL)
        step = size + (apart - size) % HUGE
    whole = ops.alloc(step * layers)
    return [whole[i * step : i * step + size].reshape(tuple(shape)) for i in range(layers)]
