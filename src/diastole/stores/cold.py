"""The cold tier: large arrays that are rarely read, in memory or in a file that the system may drop from it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

TIERS = ("ram", "mmap")


def cold(tier: str, dtype: np.dtype[np.generic], shape: Sequence[int], ops: Ops) -> Array:
    """A zeroed array, taken from the system only as it is touched.

    Args:
        tier: "ram", or "mmap": a nameless file in the directory for temporary files (TMPDIR).
    """
    if tier == "mmap":
        with tempfile.TemporaryFile(prefix="diastole-cold-") as file:
            file.truncate(max(prod(shape) * dtype.itemsize, 1))
            return np.memmap(file, dtype, "r+", shape=tuple(shape)).view(np.ndarray)
    return ops.alloc(prod(shape) * dtype.itemsize).view(dtype).reshape(tuple(shape))
