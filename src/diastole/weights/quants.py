"""Stored tensor formats: what the blocks of each kind mean, vectorised over blocks.

The layouts are those of the GGUF specification. A block holds 32 weights (256 for the K kinds):

    Q8_0  d:f16 q:i8[32]                              w = d q
    Q4_0  d:f16 q:u4[32]                              w = d (q - 8)
    Q4_1  d:f16 m:f16 q:u4[32]                        w = d q + m
    Q5_0  d:f16 high:u32 q:u4[32]                     w = d (q - 16)
    Q5_1  d:f16 m:f16 high:u32 q:u4[32]               w = d q + m
    Q4_K  d:f16 dmin:f16 scales:u8[12] q:u8[128]      w = d s q - dmin t     (s, t six bits per 32)
    Q5_K  d:f16 dmin:f16 scales:u8[12] high:u8[32] q:u8[128]
    Q6_K  low:u8[128] high:u8[64] scales:i8[16] d:f16 w = d s (q - 32)       (s per 16)

Four-bit values lie in pairs: the low nibbles of a run are its first half, the high nibbles its second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from diastole.types import Array

LARGEST_F16 = 65_504.0
_QUIET = np.errstate(invalid="ignore", over="ignore")  # what a file holds that is not finite stays so, without warnings
SLICE = 1 << 22  # weights dequantised at a time: bounds the peak memory of a conversion


class Kind(NamedTuple):
    """A stored format: weights and bytes per block."""

    weights: int
    nbytes: int


KINDS: dict[str, Kind] = {
    "F32": Kind(1, 4),
    "F16": Kind(1, 2),
    "BF16": Kind(1, 2),
    "Q8_0": Kind(32, 34),
    "Q4_0": Kind(32, 18),
    "Q4_1": Kind(32, 20),
    "Q5_0": Kind(32, 22),
    "Q5_1": Kind(32, 24),
    "Q4_K": Kind(256, 144),
    "Q5_K": Kind(256, 176),
    "Q6_K": Kind(256, 210),
}


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor as stored. shape has the rows first; data is its bytes, (rows, bytes of a row) uint8."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Array

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    def take(self, rows: Array) -> Raw:
        """Some rows, in the given order."""
        return Raw(self.name, self.kind, (len(rows), self.shape[-1]), self.data[rows])


@_QUIET
def dequantize(raw: Raw) -> Array:
    """The weights as float32, in raw.shape."""
    out = np.empty((raw.rows, raw.shape[-1]), np.float32)
    for lo, hi in _slices(raw):
        out[lo:hi] = _UNPACK[raw.kind](_blocks(raw, lo, hi)).reshape(hi - lo, -1)
    return out.reshape(raw.shape)


def has_affine4(kind: str) -> bool:
    """Whether ``affine4`` can represent this kind."""
    return kind in {"Q4_0", "Q4_1", "Q4_K"}


@_QUIET
def affine4(raw: Raw) -> tuple[Array, Array, Array] | None:
    """Four-bit kinds as w = d q + m per 32 weights: q (N, K) uint8 of 0..15; d, m (N, K/32) float32. Others: None."""
    if not has_affine4(raw.kind):
        return None
    n, k = raw.shape
    q = np.empty((n, k), np.uint8)
    d, m = np.empty((n, k // 32), np.float32), np.empty((n, k // 32), np.float32)
    for lo, hi in _slices(raw):
        part_q, part_d, part_m = _AFFINE4[raw.kind](_blocks(raw, lo, hi))
        q[lo:hi], d[lo:hi], m[lo:hi] = (part.reshape(hi - lo, -1) for part in (part_q, part_d, part_m))
    return q, d, m


@_QUIET
def byte_factors(q: Array, d: Array, m: Array) -> tuple[Array, Array, Array]:
    """What ``affine4`` gives with both factors of a group in a byte, on scales of their row: w = s/255 (a (q - 8) +
    4 (b + z)). Weights change by 0.3 % (root mean square, SmolLM2), for d is rounded about the group's middle.

    Returns:
        q (N, K) uint8, counted from the other end where d was negative; both (N, K/32 · 2) uint8, a and b in turns;
        scales (N, 2) float32, s and z, as float16 has them.
    """
    middle, size = m + 7.5 * d, np.abs(d)
    top = np.max([size.max(1), (np.ptp(middle, axis=1) + size.max(1) / 2) / 4, np.abs(middle).max(1) / 128], axis=0)
    s = top.astype(np.float16).astype(np.float32)[:, None]
    unit = np.divide(255, s, out=np.zeros_like(s), where=s > 0)
    a = np.clip(np.rint(size * unit), 0, 255)
    rest = (middle * unit + a / 2) / 4
    z = rest.min(1, keepdims=True).astype(np.float16).astype(np.float32)
    both = np.stack([a, np.clip(np.rint(rest - z), 0, 255)], -1).astype(np.uint8).reshape(len(q), -1)
    return np.where(np.repeat(d < 0, 32, 1), 15 - q, q), both, np.hstack([s, z])


@_QUIET
def int8(raw: Raw) -> tuple[Array, Array]:
    """Any kind as w = d q per 32 weights: q (N, K) int8, d (N, K/32) float32. Exact for Q8_0, else rounded."""
    n, k = raw.shape
    q, d = np.empty((n, k), np.int8), np.empty((n, k // 32), np.float32)
    for lo, hi in _slices(raw):
        blocks = _blocks(raw, lo, hi)
        if raw.kind == "Q8_0":
            part_q, part_d = blocks[:, 2:].view(np.int8), _f16(blocks, 0)
        else:
            part_q, part_d = quantize8(_UNPACK[raw.kind](blocks).reshape(-1, 32))
        q[lo:hi] = part_q.reshape(hi - lo, k)
        d[lo:hi] = part_d.reshape(hi - lo, -1)
    return q, d


def quantize8(groups: Array) -> tuple[Array, Array]:
    """Symmetric rounding to int8, half to even: groups (n, 32) float32 -> q (n, 32) int8, d (n, 1) float32.

    d is rounded to float16 first, in which the kernels keep it, so that q is right for the d that is used.
    """
    d = np.abs(groups).max(axis=1, keepdims=True) / 127
    d = np.minimum(d, LARGEST_F16).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    return np.clip(np.rint(groups * inverse), -127, 127).astype(np.int8), d


def _slices(raw: Raw) -> list[tuple[int, int]]:
    step = max(SLICE // raw.shape[-1], 1)
    return [(lo, min(lo + step, raw.rows)) for lo in range(0, raw.rows, step)]


def _blocks(raw: Raw, lo: int, hi: int) -> Array:
    """Rows lo..hi as (blocks, bytes of a block) uint8; for the float kinds a block is a whole row."""
    kind = KINDS[raw.kind]
    part = np.ascontiguousarray(raw.data[lo:hi])
    return part if kind.weights == 1 else part.reshape(-1, kind.nbytes)


def _f16(b: Array, at: int) -> Array:
    return np.ascontiguousarray(b[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(b: Array, at: int) -> Array:
    """16 bytes as 32 values."""
    q = b[:, at : at + 16]
    return np.concatenate([q & 15, q >> 4], axis=1)


def _fifth_bits(b: Array, at: int) -> Array:
    high = np.ascontiguousarray(b[:, at : at + 4]).view("<u4")
    return ((high >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def _nibble_runs(b: Array, at: int) -> Array:
    """128 bytes as (n, 8, 32) values: runs of 32 bytes carry 32 weights in their low and 32 in their high nibbles."""
    q = b[:, at : at + 128].reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 8, 32)


def _six_bit_scales(b: Array, at: int) -> tuple[Array, Array]:
    """Twelve bytes as eight scales and eight offsets of six bits each: (n, 8) float32 both."""
    s = b[:, at : at + 12]
    first, second, tops = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([first & 63, (tops & 15) | ((first >> 6) << 4)], axis=1)
    offsets = np.concatenate([second & 63, (tops >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), offsets.astype(np.float32)


def _q4_k(b: Array) -> tuple[Array, Array, Array]:
    scales, offsets = _six_bit_scales(b, 4)
    return _nibble_runs(b, 16), _f16(b, 0) * scales, -(_f16(b, 2) * offsets)


def _unpack_q4_k(b: Array) -> Array:
    q, d, m = _q4_k(b)
    return d[..., None] * q + m[..., None]


def _unpack_q5_k(b: Array) -> Array:
    scales, offsets = _six_bit_scales(b, 4)
    high = (b[:, 16:48][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _nibble_runs(b, 48) | (high << 4)
    return (_f16(b, 0) * scales)[..., None] * q - (_f16(b, 2) * offsets)[..., None]


def _unpack_q6_k(b: Array) -> Array:
    pairs = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    q = (low | ((high & 3) << 4).reshape(-1, 8, 32)).astype(np.int8) - 32
    scales = _f16(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return scales[..., None] * q.reshape(-1, 16, 16)


def _bf16(b: Array) -> Array:
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


_UNPACK: dict[str, Callable[[Array], Array]] = {
    "F32": lambda b: b.view("<f4"),
    "F16": lambda b: b.view("<f2").astype(np.float32),
    "BF16": _bf16,
    "Q8_0": lambda b: _f16(b, 0) * b[:, 2:].view(np.int8),
    "Q4_0": lambda b: _f16(b, 0) * (_nibbles(b, 2).astype(np.int8) - 8),
    "Q4_1": lambda b: _f16(b, 0) * _nibbles(b, 4) + _f16(b, 2),
    "Q5_0": lambda b: _f16(b, 0) * ((_nibbles(b, 6) | _fifth_bits(b, 2)).astype(np.int8) - 16),
    "Q5_1": lambda b: _f16(b, 0) * (_nibbles(b, 8) | _fifth_bits(b, 4)) + _f16(b, 2),
    "Q4_K": _unpack_q4_k,
    "Q5_K": _unpack_q5_k,
    "Q6_K": _unpack_q6_k,
}
_AFFINE4: dict[str, Callable[[Array], tuple[Array, Array, Array]]] = {
    "Q4_0": lambda b: (_nibbles(b, 2), _f16(b, 0), -8 * _f16(b, 0)),
    "Q4_1": lambda b: (_nibbles(b, 4), _f16(b, 0), _f16(b, 2)),
    "Q4_K": _q4_k,
}
