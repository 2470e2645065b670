"""Arena: scratch arrays that are reused from step to step, because fresh large ones cost page faults."""

from __future__ import annotations

from math import prod

import numpy as np

from diastole.types import Array

LINE = 16  # numbers in a cache line


class Arena:
    """Named float32 scratch arrays. ``get`` returns the same memory again: its content is not kept for you."""

    def __init__(self) -> None:
        self._store: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        """A float32 array of this shape with undefined content."""
        size = prod(shape)
        have = self._store.get(name)
        if have is None or have.size < size:
            have = self._store[name] = _aligned(max(size, 1))
        return have[:size].reshape(shape)


def _aligned(size: int) -> Array:
    """(size,) float32 that begins a cache line: what native operators write in whole lines."""
    whole = np.empty(size + LINE, np.float32)
    skip = -(whole.ctypes.data // whole.itemsize) % LINE
    return whole[skip : skip + size]
