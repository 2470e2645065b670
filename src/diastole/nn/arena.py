"""Arena: scratch arrays that are reused from step to step, because fresh large ones cost page faults."""

from __future__ import annotations

from math import prod

import numpy as np

from diastole.types import Array


class Arena:
    """Named float32 scratch arrays. ``get`` returns the same memory again: its content is not kept for you."""

    def __init__(self) -> None:
        self._store: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        """A float32 array of this shape with undefined content."""
        size = prod(shape)
        have = self._store.get(name)
        if have is None or have.size < size:
            have = self._store[name] = np.empty(max(size, 1), np.float32)
        return have[:size].reshape(shape)
