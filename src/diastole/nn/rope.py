"""Rotary position embedding: the table of cosines and sines, with the scalings that checkpoints ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diastole.types import Array, UserError


def rope_table(positions: int, dim: int, base: float, scaling: Mapping[str, Any] | None = None) -> Array:
    """Cosines then sines of every position: (positions, dim) float32.

    Args:
        positions: rows, one per position 0..positions-1.
        dim: rotated dimensions of a head; even.
        base: RoPE base ("rope_theta").
        scaling: Hugging Face's ``rope_scaling``: none, "linear", "llama3" (Llama 3.1, section on context extension),
            or "factors" (a factor per frequency, as GGUF files carry them).

    Raises:
        UserError: a scaling that is not known.
    """
    frequency = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    frequency = _scaled(frequency, scaling or {})
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def _scaled(frequency: Array, scaling: Mapping[str, Any]) -> Array:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequency
    if kind == "linear":
        return frequency / float(scaling["factor"])
    if kind == "factors":
        return frequency / np.asarray(scaling["factors"], np.float64)
    if kind == "llama3":
        factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        old = float(scaling["original_max_position_embeddings"])
        turns = old * frequency / (2 * math.pi)  # full turns within the original context
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - smooth) * frequency / factor + smooth * frequency
    raise UserError(
        f"rope_scaling of type {kind!r} is not supported; supported: default, linear, llama3", param="rope_scaling"
    )
