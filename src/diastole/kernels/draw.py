"""Noise for sampling: a hash of (seed, choice, position, token), so that a draw depends on nothing else.

Adding standard Gumbel noise to log probabilities and taking the largest draws from them exactly (Gumbel-max).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from diastole.types import Array

_ALL = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SPREAD = 0xD6E8FEB86659FD93  # keeps neighbouring tokens apart before mixing


def draw_key(seed: int, index: int, position: int) -> int:
    """The key of one draw: seed (any integer), choice index, position of the token that is drawn."""
    key = _mix_int(seed & _ALL)
    key = _mix_int(key ^ (index * _GOLDEN & _ALL))
    return _mix_int((key + position) & _ALL)


def _mix_int(x: int) -> int:
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


def slow_draw(scores: Array, ids: Array | None, key: int) -> int:
    """The plain twin of ``draw``."""
    return int((scores + gumbel(key, np.arange(len(scores)) if ids is None else ids)).argmax())


def _native() -> Callable[[Any, Any, int], int]:
    try:
        found: Callable[[Any, Any, int], int] = import_module("diastole.kernels._native").draw
    except ImportError:
        return slow_draw
    return found


draw = _native()
"""draw(scores, ids, key): index of the largest scores (n,) float32 + noise of ids (n,) int64; ids None: 0..n-1."""
