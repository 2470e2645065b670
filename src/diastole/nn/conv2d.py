"""Convolutions over pictures as products of matrices, on the native operators, and what UNets need beside them.

Pictures are (B, H, W, C) float32. The three pixels of a line that a kernel's line looks at lie one after the other in
memory: rows that overlap, told to the operators by their stride, are the product's left factor without a copy. So a
picture's result never depends on what else is in the call, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class Conv2d:
    """3 x 3 with a rim of zeros. weight (N, C, 3, 3), bias (N,) float32, as torch has them; stride 1 or 2."""

    def __init__(self, ops: Ops, weight: Array, bias: Array, stride: int = 1) -> None:
        self._ops, self.stride, self.n = ops, stride, len(weight)
        self._bias = np.ascontiguousarray(bias, np.float32)
        lines = weight.transpose(2, 0, 3, 1).reshape(3, self.n, -1)  # of the kernel: (N, 3 C) each
        self._lines = [ops.pack_f32(np.ascontiguousarray(line, np.float32)) for line in lines]

    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C) -> (B, H / stride, W / stride, N); H and W are multiples of the stride."""
        (b, h, w, c), s = x.shape, self.stride
        buf = np.zeros((b * (h + 2) * (w + 2) + 2, c), np.float32)
        buf[:-2].reshape(b, h + 2, w + 2, c)[:, 1:-1, 1:-1] = x
        # From pixel to pixel also over the ends of lines and pictures, where nobody reads what comes out.
        count = (b * (h + 2) * (w + 2) - 2 * (w + 2)) // s
        out = np.empty((b * (h + 2) * (w + 2) // s, self.n), np.float32)
        for i, line in enumerate(self._lines):
            rows = np.lib.stride_tricks.as_strided(
                buf[i * (w + 2) :], (count, 3 * c), (s * buf.strides[0], buf.itemsize)
            )
            self._ops.linear(rows, line, out[:count], self._bias if i == 0 else None, accumulate=i > 0)
        found: Array = out.reshape(b, h + 2, (w + 2) // s, self.n)[:, :h:s, : w // s]
        return found


class GroupNorm:
    """Mean 0 and deviation 1 of each picture's groups of channels, then weight and bias (C,)."""

    def __init__(self, weight: Array, bias: Array, groups: int, eps: float) -> None:
        self.weight, self.bias, self.groups, self.eps = weight, bias, groups, eps

    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C)."""
        b, h, w, c = x.shape
        rows = x.reshape(b, h * w, c)
        each = h * w * (c // self.groups)
        mean = self._of_groups(rows.sum(1, dtype=np.float64)) / each
        square = self._of_groups(np.square(rows).sum(1, dtype=np.float64)) / each
        scale = self.weight / np.sqrt(np.maximum(square - mean * mean, 0) + self.eps)
        shift = self.bias - mean * scale
        found: Array = rows * scale.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]
        return found.reshape(b, h, w, c)

    def _of_groups(self, sums: Array) -> Array:
        """(B, C) -> (B, C): of each channel, those of its group together."""
        whole = sums.reshape(len(sums), self.groups, -1).sum(2)
        found: Array = np.repeat(whole, sums.shape[1] // self.groups, 1)
        return found


def doubled(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C), each pixel four times."""
    return x.repeat(2, 1).repeat(2, 2)
