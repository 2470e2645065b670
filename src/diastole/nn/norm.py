"""RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """x / rms(x) · weight over the last axis."""

    ops: Ops
    weight: Array
    eps: float

    def __call__(self, x: Array, out: Array) -> Array:
        """x (T, K) or (T, H, D) -> out, which may be x itself."""
        self.ops.rmsnorm(x, self.weight, self.eps, out)
        return out
