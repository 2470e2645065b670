"""Native operators of every instruction set against their plain twins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diastole.kernels import ref
from diastole.kernels.table import Ops, load
from diastole.nn.rope import rope_table
from diastole.types import Array, UserError
from diastole.weights import byte_factors

native = pytest.importorskip("diastole.kernels._native", reason="the native operators are not built")
TWIN = ref.TorchOps()


@pytest.fixture(params=native.isas())
def ops(request: pytest.FixtureRequest) -> Iterator[Ops]:
    yield load(2, request.param)
    native.set_isa(native.isas()[0])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> Array:
    return rng(seed).normal(size=shape).astype(np.float32)


def matrix(ops: Ops, fmt: str, n: int, k: int) -> Any:
    r = rng(n + k)
    if fmt.startswith("q4"):
        q = r.integers(0, 16, (n, k)).astype(np.uint8)
        d = (r.random((n, k // 32)) * 0.01).astype(np.float16).astype(np.float32)  # as files have it
        if fmt == "q4b":
            return ops.pack_q4b(*byte_factors(q, d, -7.5 * d))
        return ops.pack_q4(q, d, (-7.5 if fmt == "q4" else -8) * d)
    if fmt == "q8":
        d = r.random((n, k // 32)).astype(np.float32) * 0.001
        return ops.pack_q8(r.integers(-128, 128, (n, k)).astype(np.int8), d)
    w = r.normal(size=(n, k)).astype(np.float32)
    return ops.pack_bf16(w) if fmt == "bf16" else ops.pack_f32(w)


FORMATS = ["f32", "bf16", "q8", "q4", "q4s", "q4b"]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (40, 64), (96, 576), (576, 1536), (1000, 256)])
def test_linear(ops: Ops, fmt: str, n: int, k: int) -> None:
    w, twin, slow = matrix(ops, fmt, n, k), matrix(TWIN, fmt, n, k), ref.TorchOps(rounding=ops.rounding)
    bias = normal(n, seed=3)
    for t in (1, 2, 3, 4, 5, 8, 33, 130):
        wide = normal(t, k + 48, seed=t)
        x = wide[:, 16 : 16 + k]  # a view with a row stride
        for b, add in ((None, False), (bias, True)):
            got, want = np.ones((t, n), np.float32), np.ones((t, n), np.float32)
            ops.linear(x, w, got, b, add)
            slow.linear(x, twin, want, b, add)
            np.testing.assert_allclose(got, want, rtol=0, atol=4e-6 * np.abs(want).max())


@pytest.mark.parametrize("fmt", ["q8", "q4", "q4s", "q4b"])
def test_integer_formats_are_near_to_float(ops: Ops, fmt: str) -> None:
    """Rounding activations costs half a percent of the output's root mean square, or less where there are more bits."""
    w, exact = matrix(ops, fmt, 64, 1536), ref.TorchOps(exact=True)
    x = normal(20, 1536)
    got, want = np.empty((20, 64), np.float32), np.empty((20, 64), np.float32)
    ops.linear(x, w, got)
    exact.linear(x, matrix(exact, fmt, 64, 1536), want)
    assert 1e-4 < np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.01


@pytest.mark.parametrize("fmt", FORMATS)
def test_embed(ops: Ops, fmt: str) -> None:
    ids = np.array([0, 39, 17, 16, 15, 3, 3], np.int32)
    got, want = np.empty((7, 64), np.float32), np.empty((7, 64), np.float32)
    ops.embed(matrix(ops, fmt, 40, 64), ids, got)
    TWIN.embed(matrix(TWIN, fmt, 40, 64), ids, want)
    several = fmt == "q4b"  # operations make a weight, which are rounded in other places
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-7 * np.abs(want).max() * several)


@pytest.mark.parametrize("k", [16, 24, 64, 576])
def test_rmsnorm(ops: Ops, k: int) -> None:
    weight = normal(k, seed=1)
    for x in (normal(5, k), normal(5, 3, k)[:, :2], normal(6, 40 + k)[:, 8 : 8 + k]):
        got, want = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
        ops.rmsnorm(x, weight, 1e-5, got)
        TWIN.rmsnorm(x, weight, 1e-5, want)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (32, 32), (64, 24), (128, 128)])
def test_rope(ops: Ops, dim: int, rotated: int) -> None:
    table = rope_table(100, rotated, 10_000.0)
    pos = np.array([0, 99, 5, 5, 42], np.int32)
    whole = normal(5, 7, dim)
    got, want = whole.copy(), whole.copy()
    ops.rope(got[:, :4], pos, table)
    TWIN.rope(want[:, :4], pos, table)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got[:, 4:], whole[:, 4:])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("f", [1, 16, 40, 1536])
def test_gated(ops: Ops, kind: str, f: int) -> None:
    gu = normal(9, 2 * f) * 8
    gu[0, :2] = [90.0, -90.0][: 2 * f]
    got, want = np.empty((9, f), np.float32), np.empty((9, f), np.float32)
    ops.gated(gu, kind, got)
    TWIN.gated(gu, kind, want)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class Cache:
    """Two streams of keys and values on shuffled pages, in an operator table's own layout."""

    def __init__(self, ops: Ops, fmt: str, dim: int, kv_heads: int, tokens: int, seed: int = 0) -> None:
        self.ops, self.fmt = ops, fmt
        each = -(-tokens // 64)
        pages = 2 * each + 3
        self.buf = ops.alloc(pages * kv_heads * ops.kv_page_bytes(fmt, dim)).reshape(pages, kv_heads, -1)
        self.tables = rng(seed).permutation(pages)[: 2 * each].reshape(2, each).astype(np.int32)
        at = np.arange(tokens)
        for b in (0, 1):
            self.rows = self.tables[b][at // 64].astype(np.int64) * 64 + at % 64
            kv = normal(tokens, 2 * kv_heads, dim, seed=b)  # k and v side by side: views with a row stride
            ops.kv_write(self.buf, fmt, self.rows, kv[:, :kv_heads], kv[:, kv_heads:])

    def attend(self, q: Array, starts: Array, lo: Array, hi: Array) -> tuple[Array, Array]:
        out = np.full(q.shape, np.nan, np.float32)
        lse = np.full(q.shape[:2], np.nan, np.float32)
        self.ops.attend(q, self.buf, self.fmt, self.tables, starts, lo, hi, q.shape[2] ** -0.5, out, lse)
        return out, lse


# Rounding: none; eight bits of weights and queries; the same and one scale per page and row.
BOUNDS = {"f32": 1e-5, "bf16": 5e-3, "int8": 1.5e-2}


@pytest.mark.parametrize("fmt", BOUNDS)
@pytest.mark.parametrize("dim", [16, 48, 64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (2, 2), (7, 1)])
def test_attention(ops: Ops, fmt: str, dim: int, heads: int, kv_heads: int) -> None:
    tokens = 1100  # three splits of 512
    here, there = (Cache(o, fmt, dim, kv_heads, tokens) for o in (ops, TWIN))
    q = normal(24, heads + 2, dim, seed=5)[:, :heads]
    starts = np.array([0, 10, 24], np.int32)
    hi = rng(6).integers(0, tokens + 1, 24).astype(np.int32)
    hi[:4] = [0, 1, 64, 1100]
    lo = np.maximum(0, hi - rng(7).integers(0, 1300, 24)).astype(np.int32)
    out, lse = here.attend(q, starts, lo, hi)
    want, want_lse = there.attend(q, starts, lo, hi)
    assert np.sqrt(((out - want) ** 2).mean() / (want**2).mean()) < BOUNDS[fmt]
    nothing = lo >= hi
    assert (out[nothing] == 0).all()
    assert np.isneginf(lse[nothing]).all()
    np.testing.assert_allclose(lse[~nothing], want_lse[~nothing], atol=3 * BOUNDS[fmt])


@pytest.mark.parametrize("fmt", BOUNDS)
def test_rows_come_back_as_they_were_rounded(ops: Ops, fmt: str) -> None:
    here, there = (Cache(o, fmt, 64, 3, 130) for o in (ops, TWIN))
    read = []
    for cache in (here, there):
        k, v = np.empty((130, 3, 64), np.float32), np.empty((130, 3, 64), np.float32)
        cache.ops.kv_read(cache.buf, fmt, cache.rows, k, v)
        read.append(np.stack([k, v]))
    # int8: a value on the edge between two steps may fall to either side
    step = np.abs(read[1]).max() / 127 if fmt == "int8" else 0
    assert np.abs(read[0] - read[1]).max() <= step * 1.001
    assert (read[0] != read[1]).mean() < 1e-3


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    with pytest.raises(UserError, match="unknown kernels"):
        load(prefer="sse9")
    with pytest.raises(ValueError, match="does not run"):
        native.set_isa("avx9")


X, OUT = normal(2, 64), np.empty((2, 40), np.float32)
WRONG: dict[str, Any] = {
    "second axis": lambda o: o.linear(normal(2, 32), matrix(o, "f32", 40, 64), OUT),
    "out must be": lambda o: o.linear(X, matrix(o, "f32", 40, 64), np.empty((2, 41), np.float32)),
    "contiguous": lambda o: o.linear(normal(2, 128)[:, ::2], matrix(o, "f32", 40, 64), OUT),
    "multiple of 32": lambda o: o.pack_q8(np.zeros((4, 40), np.int8), np.zeros((4, 1), np.float32)),
    "an id is out": lambda o: o.embed(matrix(o, "q4", 40, 64), np.array([40], np.int32), normal(1, 64)),
    "id is out": lambda o: o.embed(matrix(o, "q4", 40, 64), np.array([-1], np.int32), normal(1, 64)),
    "position": lambda o: o.rope(normal(1, 2, 16), np.array([9], np.int32), rope_table(9, 16, 1e4)),
    "rows: a row": lambda o: o.kv_write(
        o.alloc(o.kv_page_bytes("bf16", 16)).reshape(1, 1, -1),
        "bf16",
        np.array([64]),
        normal(1, 1, 16),
        normal(1, 1, 16),
    ),
    "half as wide": lambda o: o.gated(normal(2, 10), "silu", normal(2, 4)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_raise_and_touch_nothing(what: str) -> None:
    with pytest.raises(ValueError, match=what):
        WRONG[what](load())


def test_attention_never_reads_beyond_its_pages() -> None:
    cache = Cache(load(), "bf16", 16, 1, 100)
    q, starts = normal(1, 1, 16), np.array([0, 1, 1], np.int32)
    lo = np.zeros(1, np.int32)
    for hi, what in ((129, "beyond its stream's pages"), (100_000, "beyond")):
        with pytest.raises(ValueError, match=what):
            cache.attend(q, starts, lo, np.array([hi], np.int32))
    cache.tables[0, 1] = 99
    with pytest.raises(ValueError, match="page id is out of range"):
        cache.attend(q, starts, lo, np.array([100], np.int32))
    cache.attend(q, starts, lo, np.array([64], np.int32))  # the wrong page is not looked at
