"""What the kernel tests share: the instruction sets of this machine, weights in every format, a filled cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from diastole.kernels.ref import TorchOps
from diastole.kernels.table import Native, Ops, Packed, compiled, load
from diastole.types import Array

PAGE = 64
FORMATS = ("f32", "bf16", "q8", "q4", "q4s", "q4b")
KV_FORMATS = ("f32", "bf16", "int8")
ISAS = tuple(compiled().isas()) if compiled() else ()
REF = TorchOps()


def native(isa: str = "", threads: int = 2) -> Native:
    """The operators, from now on on this instruction set, or on the best."""
    if not ISAS:
        pytest.skip("the native module diastole.kernels._native is not built")
    ops = load(threads, isa or ISAS[0])
    assert isinstance(ops, Native)
    return ops


def each_isa() -> pytest.MarkDecorator:
    """Parametrises over what this machine runs."""
    return pytest.mark.parametrize("isa", ISAS or ("native",))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Weights:
    """One matrix (n, k) for a format, and what it means in float32."""

    fmt: str
    parts: tuple[Array, ...]
    dense: Array  # (n, k)

    def pack(self, ops: Ops) -> Packed:
        pack = {"q4s": ops.pack_q4}.get(self.fmt) or getattr(ops, f"pack_{self.fmt}")
        packed = pack(*self.parts)
        assert isinstance(ops, TorchOps) or packed.fmt == self.fmt
        return packed


def weights(fmt: str, n: int, k: int, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    if fmt in {"f32", "bf16"}:
        w = normal(rng, n, k)
        return Weights(fmt, (w,), bf16(w) if fmt == "bf16" else w)
    d = rng.uniform(0.001, 0.02, (n, k // 32)).astype(np.float32)
    wide = d.astype(np.float16).astype(np.float32).repeat(32, axis=1)
    if fmt == "q8":
        q8 = rng.integers(-128, 128, (n, k)).astype(np.int8)
        return Weights(fmt, (q8, d), wide * q8)
    q4 = rng.integers(0, 16, (n, k)).astype(np.uint8)
    if fmt == "q4s":
        return Weights(fmt, (q4, d, -8 * d), wide * (q4.astype(np.float32) - 8))
    if fmt == "q4b":
        both = rng.integers(0, 256, (n, k // 16)).astype(np.uint8)
        scales = (
            np.stack([rng.uniform(0.001, 0.02, n), rng.uniform(-200, -50, n)], 1).astype(np.float16).astype(np.float32)
        )
        a, b = both.reshape(n, -1, 2).astype(np.float32).transpose(2, 0, 1).repeat(32, axis=2)
        s, z = (x[:, None] for x in scales.T)
        return Weights(fmt, (q4, both, scales), s / 255 * (a * (q4.astype(np.float32) - 8) + 4 * (b + z)))
    m = rng.uniform(-0.2, 0.0, (n, k // 32)).astype(np.float32)
    return Weights(fmt, (q4, d, m), wide * q4 + m.astype(np.float16).astype(np.float32).repeat(32, axis=1))


def bf16(x: Array) -> Array:
    """Rounded to bfloat16, half to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).reshape(x.shape)


def same_bits(a: Array, b: Array) -> None:
    """Equal to the last bit, signs of zero included."""
    assert a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


class Cache:
    """A layer's pages filled with random keys and values of several streams, on shuffled pages."""

    def __init__(self, ops: Ops, fmt: str, lengths: list[int], kv_heads: int, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        needed = [-(-n // PAGE) for n in lengths]
        pages, width = sum(needed) + 3, max(needed)
        order = rng.permutation(pages).astype(np.int32)
        self.ops, self.fmt, self.lengths = ops, fmt, lengths
        self.buf = ops.alloc(pages * kv_heads * ops.kv_page_bytes(fmt, dim)).reshape(pages, kv_heads, -1)
        self.tables = np.full((len(lengths), width), -1, np.int32)  # what is not used is no page
        for b, n in enumerate(needed):
            self.tables[b, :n], order = order[:n], order[n:]
        self.k = [normal(rng, n, kv_heads, dim) for n in lengths]
        self.v = [normal(rng, n, kv_heads, dim) * np.float32(2.0) for n in lengths]
        for b in range(len(lengths)):
            self.write(b, 0, lengths[b])

    def rows(self, b: int, first: int, last: int) -> Array:
        at = np.arange(first, last)
        return self.tables[b, at // PAGE].astype(np.int64) * PAGE + at % PAGE

    def write(self, b: int, first: int, last: int) -> None:
        self.ops.kv_write(self.buf, self.fmt, self.rows(b, first, last), self.k[b][first:last], self.v[b][first:last])

    def read(self, b: int) -> tuple[Array, Array]:
        """Keys and values of a stream as they are stored."""
        k, v = np.empty_like(self.k[b]), np.empty_like(self.v[b])
        self.ops.kv_read(self.buf, self.fmt, self.rows(b, 0, self.lengths[b]), k, v)
        return k, v

    def attend(self, q: Array, streams: Array, lo: Array, hi: Array, scale: float = 0.2) -> tuple[Array, Array]:
        """q (T, H, D) of streams (T,), ascending -> out (T, H, D), lse (T, H)."""
        ids, counts = np.unique(streams, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        out, lse = np.full(q.shape, 9, np.float32), np.full(q.shape[:2], 9, np.float32)
        tables = np.ascontiguousarray(self.tables[ids])
        self.ops.attend(
            q, self.buf, self.fmt, tables, starts, lo.astype(np.int32), hi.astype(np.int32), scale, out, lse
        )
        return out, lse


def softmax(q: Array, k: Array, lo: int, hi: int) -> tuple[Array, Array]:
    """One row in float64: q (H, D), scaled, and k (n, Hkv, D) -> probabilities (H, n), log of their sum (H,)."""
    k = k.astype(np.float64).repeat(len(q) // k.shape[1], axis=1)
    scores = np.einsum("hd,nhd->hn", q.astype(np.float64), k)
    at = np.arange(len(k))
    scores[:, (at < lo) | (at >= hi)] = -np.inf
    if hi <= lo:
        return np.zeros_like(scores), np.full(len(q), -np.inf)
    most = scores.max(axis=1, keepdims=True)
    e = np.exp(scores - most)
    total = e.sum(axis=1, keepdims=True)
    return e / total, (most + np.log(total))[:, 0]
