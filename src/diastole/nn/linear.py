"""Linear: a packed weight matrix and how checkpoints' matrices become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from diastole.nn.packs import NoPacks, Packs
from diastole.types import Array
from diastole.weights import Checkpoint, Raw, affine4, byte_factors, dequantize, has_affine4, int8

if TYPE_CHECKING:
    from diastole.kernels.table import Ops, Packed

WeightFormat: TypeAlias = Literal["auto", "compact", "f32", "bf16", "q8", "q4"]


class Linear:
    """y = x Wᵀ + b with W (N, K) packed in the kernels' formats: one part, or several stacked along N."""

    __slots__ = ("bias", "n", "ops", "parts")

    def __init__(self, ops: Ops, parts: Sequence[Packed], bias: Array | None = None) -> None:
        self.ops, self.parts, self.bias = ops, tuple(parts), bias
        self.n = sum(p.n for p in parts)

    def __call__(self, x: Array, out: Array, accumulate: bool = False) -> Array:
        """x (T, K) float32 -> out (T, N), added to what out holds if ``accumulate``."""
        if len(self.parts) == 1:
            self.ops.linear(x, self.parts[0], out, self.bias, accumulate)
            return out
        lo = 0
        for part in self.parts:
            hi = lo + part.n
            bias = None if self.bias is None else self.bias[lo:hi]
            self.ops.linear(x, part, out[:, lo:hi], bias, accumulate)
            lo = hi
        return out


def format_of(kind: str, wanted: WeightFormat) -> str:
    """The packed format for a stored kind. "auto" keeps four-bit and eight-bit files as exact as they are, stores the
    five- and six-bit kinds in eight bits, and floats in bf16; "compact" does the same, but for four-bit kinds with two
    factors to a group, of which it keeps eight bits each."""
    if wanted not in {"auto", "compact"}:
        return wanted
    if kind in {"F32", "F16", "BF16"}:
        return "bf16"
    four = "q4b" if wanted == "compact" and kind != "Q4_0" else "q4"
    return four if has_affine4(kind) else "q8"


def pack(ops: Ops, raws: Sequence[Raw], wanted: WeightFormat) -> list[Packed]:
    """Stack matrices with the same K along N; neighbours that go into the same format become one part."""
    return [_pack(ops, list(group), fmt) for fmt, group in groupby(raws, lambda r: format_of(r.kind, wanted))]


def _pack(ops: Ops, raws: Sequence[Raw], fmt: str) -> Packed:
    if raws[0].shape[1] % 32 and fmt in {"q4", "q4b", "q8"}:
        fmt = "bf16"  # integer groups are 32 wide
    if fmt in {"q4", "q4b"}:
        parts = [affine4(r) or quantize4(dequantize(r)) for r in raws]
        q, d, m = (np.concatenate(p) for p in zip(*parts, strict=True))
        return ops.pack_q4(q, d, m) if fmt == "q4" else ops.pack_q4b(*byte_factors(q, d, m))
    if fmt == "q8":
        halves = [int8(r) for r in raws]
        return ops.pack_q8(*(np.concatenate(p) for p in zip(*halves, strict=True)))
    whole = np.concatenate([dequantize(r) for r in raws])
    return ops.pack_bf16(whole) if fmt == "bf16" else ops.pack_f32(whole)


def quantize4(w: Array) -> tuple[Array, Array, Array]:
    """Four-bit groups of 32 by range: w (N, K) -> q uint8 (N, K), d (N, K/32), m (N, K/32) with w ≈ d·q + m."""
    groups = w.reshape(len(w), -1, 32)
    low, high = groups.min(-1), groups.max(-1)
    d = ((high - low) / 15).astype(np.float16).astype(np.float32)
    m = low.astype(np.float16).astype(np.float32)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    q = np.clip(np.rint((groups - m[..., None]) * inverse[..., None]), 0, 15).astype(np.uint8)
    return q.reshape(w.shape), d, m


def packed_size(ops: Ops, checkpoint: Checkpoint, fmt: WeightFormat) -> int:
    """About how many bytes a checkpoint's weights take in memory."""
    total = 0
    for name in checkpoint.names():
        raw = checkpoint.raw(name)
        packed = len(raw.shape) == 2 and raw.shape[1] % 32 == 0
        total += ops.packed_bytes(format_of(raw.kind, fmt), *raw.shape) if packed else 4 * prod(raw.shape)
    return total


class Loader:
    """Reads named tensors of a checkpoint into packed form.

    Args:
        ops: operators that will run them.
        checkpoint: where they are.
        fmt: format wished for matrices; vectors stay float32.
        packs: where packed matrices are kept between starts.
        tell: is told how many tensors have been read, and of how many.
    """

    def __init__(
        self,
        ops: Ops,
        checkpoint: Checkpoint,
        fmt: WeightFormat,
        packs: Packs | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> None:
        self.ops, self.checkpoint, self.fmt = ops, checkpoint, fmt
        self.packs: Packs = packs or NoPacks()
        self._names = frozenset(checkpoint.names())
        self._tell, self._read = tell, 0

    def linear(self, *names: str) -> Linear:
        """One Linear from one or several matrices (without ".weight"), stacked along their outputs."""
        key = "+".join(names)
        weight = self.packs.get(key)
        if weight is None:
            weight = pack(self.ops, [self.checkpoint.raw(f"{n}.weight") for n in names], self.fmt)
            self.packs.put(key, weight)
        self._count(len(names))
        if not any(f"{n}.bias" in self._names for n in names):
            return Linear(self.ops, weight)
        return Linear(self.ops, weight, np.concatenate([self._bias(n) for n in names]))

    def _bias(self, name: str) -> Array:
        """A matrix's bias, zeros where it has none."""
        if f"{name}.bias" in self._names:
            return self.vector(f"{name}.bias")
        return np.zeros(self.checkpoint.raw(f"{name}.weight").shape[0], np.float32)

    def _count(self, tensors: int) -> None:
        self._read += tensors
        if self._tell is not None:
            self._tell(self._read, len(self._names))

    def vector(self, name: str) -> Array:
        """A float32 vector."""
        self._count(1)
        return np.ascontiguousarray(self.checkpoint.f32(name), np.float32)

    def has(self, name: str) -> bool:
        return name in self._names
