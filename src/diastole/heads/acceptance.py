"""A head that tells from a drafter's hidden state how likely its guess is right (SpecDec++, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diastole.types import Array

BLOCKS = 3


class AcceptanceHead:
    """h <- h + silu(W h + b) ``BLOCKS`` times, then two numbers: rejected, accepted.

    The blocks share one matrix, as the published code has it, which repeats one module.

    Args:
        tensors: ``w`` (d, d), ``b`` (d,), ``out`` (2, d), ``out_b`` (2,), float32.

    Raises:
        KeyError, ValueError: a tensor is missing or does not fit the others.
    """

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.w, self.b, self.out, self.out_b = (
            np.ascontiguousarray(tensors[name], np.float32) for name in ("w", "b", "out", "out_b")
        )
        d = len(self.b)
        if self.w.shape != (d, d) or self.out.shape != (2, d) or self.out_b.shape != (2,):
            raise ValueError("w, b, out and out_b do not fit together")
        if not all(np.isfinite(x).all() for x in (self.w, self.b, self.out, self.out_b)):
            raise ValueError("the head must hold finite numbers")

    @property
    def width(self) -> int:
        return len(self.b)

    def __call__(self, hidden: Array) -> Array:
        """hidden (T, d) -> probability that each guess is right (T,)."""
        h = hidden
        for _ in range(BLOCKS):
            x = h @ self.w.T + self.b
            h = h + x / (1 + np.exp(-x))
        rejected, accepted = (h @ self.out.T + self.out_b).T
        found: Array = 1 / (1 + np.exp(np.clip(rejected - accepted, -60, 60)))
        return found
