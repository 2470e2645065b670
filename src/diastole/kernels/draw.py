"""Choosing tokens from logits, with noise that is a hash of (seed, choice, position, token) and of nothing else.

Adding standard Gumbel noise to log probabilities and taking the largest draws from them exactly (Gumbel-max).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from diastole.types import Array

_ALL = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SPREAD = 0xD6E8FEB86659FD93  # keeps neighbouring tokens apart before mixing


def stream_key(seed: int, index: int) -> int:
    """The part of a draw's key that a choice keeps: seed (any integer), choice index."""
    return mix(mix(seed & _ALL) ^ (index * _GOLDEN & _ALL))


def draw_key(stream: int, position: int) -> int:
    """The key of one draw: of its choice, and the position of the token that is drawn."""
    return mix((stream + position) & _ALL)


def mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x + _GOLDEN) & _ALL
    x = ((x ^ (x >> 30)) * _FIRST) & _ALL
    x = ((x ^ (x >> 27)) * _SECOND) & _ALL
    return x ^ (x >> 31)


def gumbel(key: int, ids: Array) -> Array:
    """Standard Gumbel noise of tokens ids (n,): (n,) float32."""
    x = np.uint64(key) ^ (ids.astype(np.uint64) * np.uint64(_SPREAD))
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    x = x ^ (x >> np.uint64(31))
    uniform = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # strictly between 0 and 1
    return (-np.log(-np.log(uniform))).astype(np.float32)


def candidates(logits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[Array, Array]:
    """The tokens that are left: ids (n,) ascending, and their logits / temperature (n,) float32.

    top_k: the likeliest so many, 0: all; of equals those with smaller ids. top_p: of these the fewest whose mass
    reaches it. min_p: of these the ones at least so likely as this share of the likeliest.
    """
    scores = (logits / np.float32(temperature)).astype(np.float32, copy=False)
    order = np.lexsort((np.arange(len(scores)), -scores))
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        mass = np.cumsum(np.exp((scores[order] - scores[order[0]]).astype(np.float64)))
        order = order[: int(np.searchsorted(mass, top_p * mass[-1])) + 1]
    if min_p > 0:
        order = order[scores[order] >= scores[order[0]] + np.log(np.float32(min_p))]
    ids = np.sort(order)
    return ids, scores[ids]


WISH = np.dtype([("temperature", "<f4"), ("top_k", "<i4"), ("top_p", "<f4"), ("min_p", "<f4"), ("key", "<u8")])
_WISH = struct.Struct("<fiffQ")


def wish(temperature: float, top_k: int, top_p: float, min_p: float, key: int) -> bytes:
    """One ``WISH`` in bytes: temperature 0 wishes the largest logit; key of ``stream_key``."""
    return _WISH.pack(temperature, top_k, top_p, min_p, key)


def slow_sample(
    logits: Array,
    adjusted: Mapping[int, Array],
    wishes: Array,
    positions: Array,
    out: Array,
    rows: Array | None = None,
) -> None:
    """The plain twin of ``sample``."""
    for i, (t, top_k, top_p, min_p, key) in enumerate(wishes.view(WISH)):
        row = adjusted.get(i, logits[i if rows is None else rows[i]])
        with np.errstate(all="ignore"):
            greedy = t == 0 or not np.isfinite(row.max() / t)
        if greedy:
            out[i] = row.argmax()
            continue
        ids, scores = candidates(row, t, top_k, top_p, min_p)
        out[i] = ids[(scores + gumbel(draw_key(int(key), int(positions[i])), ids)).argmax()]


def _native() -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = import_module("diastole.kernels._native").sample
    except ImportError:
        return slow_sample
    return found


sample = _native()
"""sample(logits, adjusted, wishes, positions, out, rows): one token for each wish.

logits (R, V) float32; rows (B,) int64: which of them is meant, None: all in order, R = B; adjusted: rows (V,) float32
that stand in by the wish's index; wishes: B of ``wish``, one after the other, as uint8; positions (B,) int64 -> out
(B,) int64. See ``candidates``.
"""
