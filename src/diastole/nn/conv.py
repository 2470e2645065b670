"""Convolutions over time as products of matrices, on the native operators.

A row of a convolution's input is a stretch of rows of the signal, and those lie one after the other in memory: rows
that overlap, told to the operators by their stride, are the product's left factor without a copy. So a row's result
never depends on what else is in the call, to the bit, and a stream is worth as much alone as in a crowd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


class Dense:
    """y = x Wᵀ + bias. weight (N, K), bias (N,) float32."""

    def __init__(self, ops: Ops, weight: Array, bias: Array | None = None) -> None:
        self._ops, self._bias = ops, None if bias is None else np.ascontiguousarray(bias, np.float32)
        self._weight = ops.pack_f32(np.ascontiguousarray(weight, np.float32))

    def __call__(self, x: Array) -> Array:
        """x (..., K) float32 -> (..., N)."""
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        out = np.empty((len(rows), self._weight.n), np.float32)
        self._ops.linear(rows, self._weight, out, self._bias)
        return out.reshape(*x.shape[:-1], -1)


class Conv:
    """y[t] = bias + sum_i W[:, :, i] x[stride t + i], over rows of C channels; no padding.

    Args:
        weight: (N, C, k) float32, as torch's Conv1d has it.
        bias: (N,).
    """

    def __init__(self, ops: Ops, weight: Array, bias: Array | None = None, stride: int = 1) -> None:
        n, self.channels, self.width = weight.shape
        self.stride = stride
        self._ops, self._bias = ops, None if bias is None else np.ascontiguousarray(bias, np.float32)
        self._weight = ops.pack_f32(np.ascontiguousarray(weight.transpose(0, 2, 1), np.float32).reshape(n, -1))

    def __call__(self, x: Array, left: int = 0, right: int = 0) -> Array:
        """x (B, L, C) float32 -> (B, T, N), with so many zero rows before and after each of B."""
        b, length, c = x.shape
        padded = left + length + right
        made = (padded - self.width) // self.stride + 1
        period = -(-padded // self.stride) * self.stride  # so that each of B begins at a multiple of the stride
        buf = np.zeros((b * period + self.width, c), np.float32)
        buf[: b * period].reshape(b, period, c)[:, left : left + length] = x
        rows = np.lib.stride_tricks.as_strided(
            buf, (b * period // self.stride, self.width * c), (self.stride * buf.strides[0], buf.itemsize)
        )
        out = np.empty((len(rows), self._weight.n), np.float32)
        self._ops.linear(rows, self._weight, out, self._bias)  # also of rows between two of B, which nobody reads
        return out.reshape(b, -1, self._weight.n)[:, :made]


def folded(weights: Mapping[str, Array], conv: str, norm: str, eps: float) -> tuple[Array, Array]:
    """The weight and bias of a convolution with the batch norm that follows it folded in.

    Args:
        conv: name of the convolution in ``weights``; its weight has outputs first.
        norm: name of the norm.
    """
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + eps)
    weight = weights[f"{conv}.weight"]
    bias = weights.get(f"{conv}.bias", np.zeros(len(weight), np.float32)) - weights[f"{norm}.running_mean"]
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + weights[f"{norm}.bias"]
