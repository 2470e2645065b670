"""What is done to each number or row alone: norms, softmax and activations, over any leading axes."""

from __future__ import annotations

import numpy as np

from diastole.types import Array


def layernorm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Mean 0 and deviation 1 over the last axis, then weight and bias."""
    y = x - x.mean(-1, keepdims=True)
    y *= 1 / np.sqrt(np.square(y).mean(-1, keepdims=True) + eps)
    y *= weight
    y += bias
    found: Array = y
    return found


def softmax(x: Array) -> Array:
    """Over the last axis; -inf has no share. A row of nothing else gives NaN."""
    y = np.exp(x - x.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    found: Array = y
    return found


def gelu(x: Array) -> Array:
    """Its approximation by tanh."""
    found: Array = 0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))
    return found


def elu(x: Array) -> Array:
    found: Array = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return found


def sigmoid(x: Array) -> Array:
    found: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return found


def silu(x: Array) -> Array:
    return x * sigmoid(x)
