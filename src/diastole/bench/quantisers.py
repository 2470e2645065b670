"""Ways to quantise keys and values, each as what comes back: numbers as they would be read. In numpy, for studies.

Keys and values are (..., heads, tokens, dim) float32; parameters have 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diastole.types import Array


def uniform(x: Array, bits: int, axis: int | tuple[int, ...]) -> Array:
    """Asymmetric: 2^bits steps from the least to the largest along ``axis``, whose parameters are float16."""
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    low = low.astype(np.float16).astype(np.float32)
    step = np.maximum((high - low) / (2**bits - 1), 1e-6).astype(np.float16).astype(np.float32)
    step = np.maximum(step, np.float32(1e-6))
    found: Array = np.clip(np.rint((x - low) / step), 0, 2**bits - 1) * step + low
    return found


def symmetric(x: Array, bits: int) -> Array:
    """By token, from minus the largest to the largest."""
    step = np.maximum(np.abs(x).max(-1, keepdims=True) / (2 ** (bits - 1) - 1), 1e-9)
    found: Array = np.clip(np.rint(x / step), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) * step
    return found


def by_token(x: Array, bits: int) -> Array:
    return uniform(x, bits, -1)


def by_group(x: Array, bits: int, size: int = 32) -> Array:
    """Groups of channels of a token."""
    return uniform(x.reshape(*x.shape[:-1], -1, size), bits, -1).reshape(x.shape)


def by_channel(x: Array, bits: int) -> Array:
    return uniform(x, bits, -2)


def separable(x: Array, bits: int) -> Array:
    """By token over all heads, after each channel has been divided by the root of its largest value."""
    scale = np.maximum(np.sqrt(np.abs(x).max(-2, keepdims=True)), 1e-6).astype(np.float16).astype(np.float32)
    return uniform(x / scale, bits, (-3, -1)) * scale


def mixed(quantise: Callable[[Array, int], Array], x: Array, fine: Array, hi: int, lo: int) -> Array:
    """Tokens that are ``fine`` (..., heads, tokens), as many in each head, with ``hi`` bits, the others with ``lo``;
    each of the two by itself."""
    order = np.argsort(~fine, axis=-1, kind="stable")[..., None]
    n = int(fine.reshape(-1, fine.shape[-1])[0].sum())
    sorted_ = np.take_along_axis(x, order, -2)
    parts = [quantise(part, bits) for part, bits in ((sorted_[..., :n, :], hi), (sorted_[..., n:, :], lo)) if part.size]
    out = np.empty_like(x)
    np.put_along_axis(out, order, np.concatenate(parts, -2), -2)
    return out


@dataclass(frozen=True, slots=True)
class Way:
    """How keys and values are quantised together."""

    name: str
    run: Callable[[Array, Array], tuple[Array, Array]]
    parameters: float  # bytes of parameters, per token of a head, keys and values together


def plain(name: str, quantise: Callable[[Array, int], Array], bits: int, parameters: float) -> Way:
    return Way(name, lambda k, v: (quantise(k, bits), quantise(v, bits)), parameters)


def cst(bits: int, tokens: int, heads: int, dim: int) -> Way:
    """Keys by channel, values separably."""
    parameters = (4 * dim + 2 * dim) / tokens + 4 / heads
    return Way(f"CST {bits} bits", lambda k, v: (by_channel(k, bits), separable(v, bits)), parameters)


def by_channel_and_group(bits: int, tokens: int, dim: int) -> Way:
    """Keys by channel, values by groups of 32 channels: what CST is meant to replace."""

    def run(k: Array, v: Array) -> tuple[Array, Array]:
        return by_channel(k, bits), by_group(v, bits)

    return Way(f"keys by channel, values by 32, {bits} bits", run, 4 * dim / tokens + 4 * dim / 32)


def split(name: str, fine: Array, hi: int, lo: int, tokens: int, heads: int, dim: int) -> Way:
    """The same with two classes of tokens."""
    parameters = (8 * dim + 4 * dim) / tokens + 4 / heads + 1 / 8

    def run(k: Array, v: Array) -> tuple[Array, Array]:
        return mixed(by_channel, k, fine, hi, lo), mixed(separable, v, fine, hi, lo)

    return Way(name, run, parameters)


def largest(saliency: Array, share: float) -> Array:
    """The tokens (..., n) with the largest saliency, of equal ones the first."""
    n = saliency.shape[-1]
    fine = np.zeros(saliency.shape, bool)
    order = np.argsort(-saliency, axis=-1, kind="stable")
    np.put_along_axis(fine, order[..., : round(share * n)], True, -1)
    return fine
