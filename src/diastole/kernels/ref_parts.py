"""What the operators' twins share: pages as they keep them, softmax, bits of bfloat16."""

from __future__ import annotations

import numpy as np
import torch

from diastole.types import Array

PAGE = 64


def by_head(x: Array, groups: int, axes: int) -> Array:
    """What is given once for all key/value heads, or for each: with an axis for them behind the first."""
    return x if x.ndim > axes else np.repeat(x[:, None], groups, 1)


def keys_alone(buf: Array, dim: int) -> Array:
    """Pages of keys alone: bits of bfloat16 (pages, Hkv, 64, dim)."""
    return buf.view(np.uint16).reshape(len(buf), buf.shape[1], PAGE, dim)


def some_channels(x: Array, channels: Array, dim: int) -> Array:
    """Of x (T, H, D) the channels (H, C) of each head, then zeros: (T, H, dim)."""
    some = np.zeros((*x.shape[:2], dim), np.float32)
    some[..., : channels.shape[1]] = np.take_along_axis(x, channels[None].astype(np.int64), 2)
    return some


def wide(bits: Array) -> Array:
    """Bits of bfloat16 as float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def softmax(q: Array, k: Array, v: Array, seen: Array, scale: float) -> tuple[Array, Array]:
    """q (T, H, D); k, v (n, D); seen (T, 1, n): out (T, H, D), and the log of the sum of exponentials (T, H)."""
    scores = torch.einsum("thd,nd->thn", tensor(q), tensor(k)) * scale
    scores = scores.masked_fill(~tensor(seen), -torch.inf)
    total = scores.logsumexp(-1) if k.shape[0] else torch.full(scores.shape[:2], -torch.inf)
    weights = torch.nan_to_num((scores - total[..., None]).exp())
    return torch.einsum("thn,nd->thd", weights, tensor(v)).numpy(), total.numpy()


def tensor(a: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


def cells(buf: Array) -> Array:
    pages, heads, _ = buf.shape
    return buf.view(np.float32).reshape(pages, heads, 2, PAGE, -1)
