"""Convolutions over pictures as products of matrices, on the native operators, and what UNets need beside them.

Pictures are (B, H, W, C) float32. The three pixels of a line that a kernel's line looks at lie one after the other in
memory: rows that overlap, told to the operators by their stride, are the product's left factor without a copy. So a
picture's result never depends on what else is in the call, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class Before(Protocol):
    """What is done to a convolution's input on its way there."""

    def __call__(self, x: Array, out: Array) -> None: ...


class Conv2d:
    """3 x 3 with a rim of zeros. weight (N, C, 3, 3), bias (N,) float32, as torch has them; stride 1 or 2; ``rim`` 0:
    zeros are behind the last lines and pixels only."""

    def __init__(self, ops: Ops, weight: Array, bias: Array, stride: int = 1, rim: int = 1) -> None:
        self._ops, self.stride, self.n, self._rim = ops, stride, len(weight), rim
        self._bias = np.ascontiguousarray(bias, np.float32)
        lines = weight.transpose(2, 0, 3, 1).reshape(3, self.n, -1)  # of the kernel: (N, 3 C) each
        self._lines = [ops.pack_f32(np.ascontiguousarray(line, np.float32)) for line in lines]

    def __call__(self, x: Array, before: Before | None = None) -> Array:
        """x (B, H, W, C) -> (B, H / stride, W / stride, N); H and W are multiples of the stride."""
        (b, h, w, c), s = x.shape, self.stride
        wide, high = w + s, h + s  # the zeros behind a line are those before the next, and so for pictures
        buf = np.zeros((b * high * wide + wide + s + 1, c), np.float32)
        inside = buf[self._rim * (wide + 1) :][: b * high * wide].reshape(b, high, wide, c)[:, :h, :w]
        if before is None:
            inside[...] = x
        else:
            before(x, out=inside)
        # From pixel to pixel also over the ends of lines and pictures, where nobody reads what comes out.
        out = np.empty((b * high * wide // s, self.n), np.float32)
        count = (b * high - s) * wide // s
        for i, line in enumerate(self._lines):
            rows = np.lib.stride_tricks.as_strided(buf[i * wide :], (count, 3 * c), (s * buf.strides[0], buf.itemsize))
            self._ops.linear(rows, line, out[:count], self._bias if i == 0 else None, accumulate=i > 0)
        found: Array = out.reshape(b, high, wide // s, self.n)[:, :h:s, : w // s]
        return found


class GroupNorm:
    """Mean 0 and deviation 1 of each picture's groups of channels, then weight and bias (C,)."""

    def __init__(self, ops: Ops, weight: Array, bias: Array, groups: int, eps: float) -> None:
        self._ops, self._weights, self._groups, self._eps = ops, np.stack([weight, bias]), groups, eps

    def __call__(self, x: Array, out: Array, add: Array | None = None, silu: bool = True) -> None:
        """x (B, H, W, C), to which add (B, C) is added before, and which y sigmoid(y) follows."""
        self._ops.groupnorm(x, self._weights, self._groups, self._eps, out, add, silu)


def doubled(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C), each pixel four times."""
    return x.repeat(2, 1).repeat(2, 2)
