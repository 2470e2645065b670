"""Attention to a part of the cache: pages and tokens that heads choose for themselves, and what they choose by."""

import numpy as np
import pytest

from diastole.kernels.ref_labels import labels_read
from diastole.types import Array
from kernels.cases import PAGE, REF, Cache, bf16, each_isa, native, normal, same_bits

FORMATS = ("f32", "bf16", "int8", "rows", "rows8")
# of the error, beside the twin's result as a whole
BOUND = {"f32": 2e-6, "bf16": 6e-3, "rows": 6e-3, "int8": 2e-2, "rows8": 2e-2}


def ranges(n: int, *rows: tuple[int, int]) -> tuple[Array, Array]:
    lo, hi = np.array(rows, np.int32).T
    return np.ascontiguousarray(lo), np.ascontiguousarray(hi)


def near(fast: Array, slow: Array, fmt: str) -> None:
    assert np.isfinite(fast).all()
    assert np.linalg.norm(fast - slow) <= BOUND[fmt] * np.linalg.norm(slow)


@each_isa()
@pytest.mark.parametrize("dim", [16, 64, 80, 256])
def test_rows_hold_what_bf16_holds_and_give_the_same_bits(isa: str, dim: int) -> None:
    """A page of rows is brought into the other form before it is looked at, so nothing else can differ."""
    rows, plain = (Cache(native(isa), fmt, [150, 700], 3, dim) for fmt in ("rows", "bf16"))
    q = normal(np.random.default_rng(1), 9, 6, dim)
    streams = np.array([0] * 4 + [1] * 5)
    lo = np.array([0, 100, 149, 7, 0, 0, 600, 511, 20])
    hi = np.array([150, 140, 150, 65, 700, 1, 699, 513, 640])
    for b in (0, 1):
        for a, other in zip(rows.read(b), plain.read(b), strict=True):
            same_bits(a, other)
    for a, other in zip(rows.attend(q, streams, lo, hi), plain.attend(q, streams, lo, hi), strict=True):
        same_bits(a, other)


@each_isa()
@pytest.mark.parametrize("dim", [16, 64, 80, 256])
def test_rows_of_bytes_are_those_of_the_twin(isa: str, dim: int) -> None:
    """Their steps are in their lowest bits: whatever the size of the numbers, from nothing to what has no number."""
    rng = np.random.default_rng(12)
    size = np.float32(2.0) ** rng.integers(-30, 25, (200, 3, 1)).astype(np.float32)
    size[7], size[8, 1], size[9] = 0, np.nan, np.float32(1e30)
    k, v = (normal(rng, 200, 3, dim) * size for _ in range(2))
    v[10, 0, dim - 1] = -np.inf
    results = []
    for ops in (native(isa), REF):
        buf = ops.alloc(4 * 3 * ops.kv_page_bytes("rows8", dim)).reshape(4, 3, -1)
        rows, out = rng.permutation(200), (np.empty_like(k), np.empty_like(v))
        ops.kv_write(buf, "rows8", rows, k[rows], v[rows])
        ops.kv_read(buf, "rows8", np.arange(200), *out)
        results.append(out)
    for given, fast, slow in zip((k, v), *results, strict=True):
        same_bits(*(np.where(np.isnan(x), np.float32(7e30), x) for x in (fast, slow)))
        most = np.abs(given).max(-1, keepdims=True)
        held = (most < 2.0**11.75 * 127) & (most > 1e-3)  # a step is neither too small nor the least
        step = np.where(held, most, 1) / 127 * 1.0906  # an eighth of an octave
        error = np.where(held, np.abs(fast - given), 0) / step
        assert error[..., 8:].max(initial=0) <= 0.5 + 0.5  # a half of 2**-7 is what bf16 rounds 127 steps by
        assert error[..., :8].max() <= 1 + 0.5
        assert (np.isnan(fast).all(-1) == ~(most[..., 0] < 2.0**11.75 * 127)).all()
        assert (fast[7] == 0).all()
    assert native(isa).kv_page_bytes("rows8", dim) * 2 == native(isa).kv_page_bytes("bf16", dim)


def pages_of_heads(cache: Cache, rng: np.random.Generator, rows: int, most: int) -> tuple[Array, Array, Array]:
    """For each head some of a stream's pages in order, the last one among them, and what rows see of these."""
    heads, last = cache.buf.shape[1], (cache.lengths[0] - 1) // PAGE
    tables = np.full((1, heads, most), -1, np.int32)
    hi = np.zeros((rows, heads), np.int32)
    for g in range(heads):
        chosen = np.append(np.sort(rng.choice(last, rng.integers(0, most), replace=False)), last)
        tables[0, g, : len(chosen)] = cache.tables[0, chosen]
        hi[:, g] = (len(chosen) - 1) * PAGE + cache.lengths[0] - last * PAGE - np.arange(rows)[::-1]
    return tables, np.zeros_like(hi), hi


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (8, 2, 32)])
@pytest.mark.parametrize("rows", [1, 20])
def test_heads_look_at_pages_of_their_own(isa: str, fmt: str, heads: int, kv_heads: int, dim: int, rows: int) -> None:
    rng = np.random.default_rng(2)
    fast, slow = (Cache(ops, fmt, [1500], kv_heads, dim) for ops in (native(isa), REF))
    q = normal(rng, rows, heads, dim)
    tables, lo, hi = pages_of_heads(fast, rng, rows, 14)
    starts = np.array([0, rows], np.int32)
    results = []
    for cache in (fast, slow):
        out, lse = np.empty_like(q), np.empty((rows, heads), np.float32)
        cache.ops.attend(q, cache.buf, fmt, tables, starts, lo, hi, 0.2, out, lse)
        results.append((out, lse))
    near(results[0][0], results[1][0], fmt)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=10 * BOUND[fmt])


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_all_pages_by_head_are_all_pages(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [1100, 90], 3, 64)
    q = normal(np.random.default_rng(3), 5, 9, 64)
    starts, lo, hi = np.array([0, 3, 5], np.int32), np.zeros(5, np.int32), np.array([1100, 1, 700, 90, 64], np.int32)
    out, own = np.empty_like(q), np.empty_like(q)
    cache.ops.attend(q, cache.buf, fmt, cache.tables, starts, lo, hi, 0.2, out)
    tables = np.repeat(cache.tables[:, None], 3, axis=1)
    by_head = [np.repeat(x[:, None], 3, axis=1) for x in (lo, hi)]
    cache.ops.attend(q, cache.buf, fmt, tables, starts, *by_head, 0.2, own)
    same_bits(own, out)


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sets", [3, 9])
@pytest.mark.parametrize("dim", [32, 64, 80])
def test_tokens_one_by_one(isa: str, fmt: str, sets: int, dim: int) -> None:
    """Some rows, each set with tokens of its own, also none and more than a split."""
    rng = np.random.default_rng(4)
    fast, slow = (Cache(ops, fmt, [1300], 3, dim) for ops in (native(isa), REF))
    q, which = normal(rng, 5, 9, dim), np.array([0, 2, 3], np.int32)
    at, counts = np.zeros((3, sets, 600), np.int64), np.zeros((3, sets), np.int32)
    for i, s in np.ndindex(3, sets):
        counts[i, s] = n = int(rng.choice([0, 1, 15, 16, 17, 64, 300, 513, 600]))
        at[i, s, :n] = fast.rows(0, 0, 1300)[np.sort(rng.choice(1300, n, replace=False))]
    results = []
    for cache in (fast, slow):
        out, lse = np.full_like(q, 7.0), np.full((5, 9), 7.0, np.float32)
        cache.ops.attend_tokens(q, cache.buf, fmt, which, at, counts, 0.2, out, lse)
        assert (out[[1, 4]] == 7.0).all()
        assert (lse[[1, 4]] == 7.0).all()
        results.append((out[which], lse[which]))
    near(results[0][0], results[1][0], fmt)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=10 * BOUND[fmt])
    alone = np.empty_like(q)  # and a row's result does not depend on who is chosen beside it
    fast.ops.attend_tokens(q, fast.buf, fmt, which[1:2], at[1:2], counts[1:2], 0.2, alone)
    same_bits(alone[2], results[0][0][1])


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_all_tokens_are_everything(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [900], 3, 64)
    q = normal(np.random.default_rng(5), 1, 9, 64)
    out, own = np.empty_like(q), np.empty_like(q)
    zero, one = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    cache.ops.attend(q, cache.buf, fmt, cache.tables, one, zero, zero + 900, 0.2, out)
    at = np.repeat(cache.rows(0, 0, 900)[None, None], 3, axis=1)
    cache.ops.attend_tokens(q, cache.buf, fmt, zero, at, np.full((1, 3), 900, np.int32), 0.2, own)
    assert np.abs(own - out).max() <= BOUND[fmt] * np.abs(out).max()


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("pooled", [False, True])
def test_scores(isa: str, fmt: str, pooled: bool) -> None:
    fast, slow = (Cache(ops, fmt, [1100, 70], 3, 64) for ops in (native(isa), REF))
    q = normal(np.random.default_rng(6), 4, 9, 64)
    starts = np.array([0, 2, 4], np.int32)
    lo, hi = ranges(4, (0, 1100), (5, 514), (0, 70), (66, 66))
    found = []
    for cache in (fast, slow):
        out = np.empty((4, 3 if pooled else 9, 1200), np.float32)
        cache.ops.scores(q, cache.buf, fmt, cache.tables, starts, lo, hi, 0.2, out)
        found.append(out)
    np.testing.assert_array_equal(np.isinf(found[0]), np.isinf(found[1]))
    seen = np.isfinite(found[1])
    assert seen.sum() == (1100 + 509 + 70) * out.shape[1]
    np.testing.assert_allclose(found[0][seen], found[1][seen], atol=BOUND[fmt] * np.abs(found[1][seen]).max())


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_what_is_taken_off_scores_decides_who_is_largest(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [700], 3, 64)
    rng = np.random.default_rng(16)
    q, less = normal(rng, 2, 9, 64), normal(rng, 2, 9)
    starts, (lo, hi) = np.array([0, 2], np.int32), ranges(2, (0, 700), (3, 90))
    each, pooled = np.empty((2, 9, 700), np.float32), np.empty((2, 3, 700), np.float32)
    for out, off in ((each, None), (pooled, less)):
        cache.ops.scores(q, cache.buf, fmt, cache.tables, starts, lo, hi, 0.2, out, off)
    same_bits(pooled, (each - less[..., None]).reshape(2, 3, 3, 700).max(2))


@each_isa()
@pytest.mark.parametrize("dim", [16, 32])
def test_scores_of_keys_alone(isa: str, dim: int) -> None:
    rng = np.random.default_rng(7)
    cache = Cache(native(isa), "bf16", [700], 3, 64)  # for its tables
    k, q = normal(rng, 700, 3, dim), normal(rng, 2, 9, dim)
    starts, (lo, hi) = np.array([0, 2], np.int32), ranges(2, (0, 700), (3, 90))
    found = []
    for ops in (cache.ops, REF):
        buf = ops.alloc(len(cache.buf) * 3 * dim * 128).reshape(len(cache.buf), 3, -1)
        ops.keys_write(buf, cache.rows(0, 0, 700), k)
        out = np.empty((2, 3, 700), np.float32)
        ops.scores(q, buf, "keys", cache.tables, starts, lo, hi, 1.0, out)
        found.append(out)
    exact = np.einsum("tghd,ngd->tghn", bf16(q).reshape(2, 3, 3, dim), bf16(k)).max(2)
    np.testing.assert_allclose(found[0][0], exact[0], atol=2e-5)
    np.testing.assert_array_equal(np.isinf(found[0]), np.isinf(found[1]))
    np.testing.assert_allclose(found[0][1][:, 3:90], found[1][1][:, 3:90], atol=0.1)


@each_isa()
@pytest.mark.parametrize(("per", "whole"), [(4, False), (4, True), (1, False)])
def test_page_scores(isa: str, per: int, whole: bool) -> None:
    rng = np.random.default_rng(8)
    ops = native(isa)
    rows = (bf16(normal(rng, 60, 3, per, 128)).view(np.uint32) >> 16).astype(np.uint16)
    index = rows.view(np.uint8).reshape(60, 3, -1)
    q, tables = normal(rng, 3, 9, 128), rng.permutation(60).astype(np.int32)[:50].reshape(1, 50)
    n, starts = np.array([50, 33, 0], np.int32), np.array([0, 3], np.int32)
    fast, slow = (np.empty((3, 3, 50 * per if whole else 50), np.float32) for _ in range(2))
    ops.page_scores(q, index, tables, starts, n, fast)
    REF.page_scores(q, index, tables, starts, n, slow)
    np.testing.assert_array_equal(np.isinf(fast), np.isinf(slow))
    seen = np.isfinite(slow)
    np.testing.assert_allclose(fast[seen], slow[seen], atol=1e-4)


@each_isa()
@pytest.mark.parametrize("per", [1, 2, 4, 16])
@pytest.mark.parametrize(("heads", "dim"), [(9, 64), (3, 80), (24, 32)])
def test_pages_by_bounds(isa: str, per: int, heads: int, dim: int) -> None:
    """The same pages as the twin; and of keys that the bounds are of, none has a larger score than its page's bound."""
    rng = np.random.default_rng(10)
    keys = bf16(normal(rng, 90, 3, per, 64 // per, dim))
    rows = np.concatenate([keys.max(3), keys.min(3)], -1)  # (pages, heads, per, 2·D)
    step = 32 // per
    bits = (rows.reshape(90, 3, per, -1, step).swapaxes(2, 3).copy().view(np.uint32) >> 16).astype(np.uint16)
    index = bits.reshape(90, 3, -1)[:, [2, 0]].copy().view(np.uint8)  # of those that choose
    q = normal(rng, 3, heads, dim)
    tables = np.stack([rng.permutation(90)[:80] for _ in range(3)]).astype(np.int32)
    blocks, ask = np.array([79, 12, 40], np.int32), np.array([2, 0, 1], np.int32)
    fast, slow = (np.full((3, 3, 9), -7, np.int32) for _ in range(2))
    runs = np.array([2, 0, 3], np.int32)
    ids, slow_ids = (np.full((4, 3, 12), -7, np.int32) for _ in range(2))
    native(isa).pick_pages(q, index, per, tables, blocks, ask, 1, 2, fast, runs, ids)
    REF.pick_pages(q, index, per, tables, blocks, ask, 1, 2, slow, runs, slow_ids)
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(ids, slow_ids)
    np.testing.assert_array_equal(ids[3, 2, :9], tables[2, fast[2, 2]])
    with pytest.raises(ValueError, match="has no place in the index"):
        native(isa).pick_pages(q, index, per, tables, blocks, ask + 1, 1, 2, fast, runs, ids)
    assert (fast[:, 1] == -7).all()
    group = heads // 3
    own = q[0, :group]  # of head 0
    exact = np.einsum("hd,prtd->hprt", own, keys[:, 0]).max((0, 2, 3))[tables[0]]
    most, least = rows[:, 0, :, :dim], rows[:, 0, :, dim:]
    bound = np.maximum(own[:, None, None] * most, own[:, None, None] * least).sum(-1).max((0, 2))[tables[0]]
    assert (bound >= exact - 1e-4).all()
    assert set(fast[0, 0]) == {0, 78, 79, *(1 + np.argsort(-bound[1:78])[:6])}


@each_isa()
@pytest.mark.parametrize("n", [1, 17, 500, 8000])
@pytest.mark.parametrize("k", [1, 16, 300, 8000])
def test_the_largest(isa: str, n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    x = normal(rng, 4, n)
    x[1] = np.round(x[1])  # many are equal
    x[2, ::3] = -np.inf
    x[3] = np.where(rng.random(n) < 0.1, np.nan, np.sort(x[3]))  # a sample misleads
    wanted = np.array([min(k, n), k // 2, k, k], np.int32).clip(0, n)
    got, slow = (np.empty((4, n), np.int32) for _ in range(2))
    counts, slow_counts = (np.empty(4, np.int32) for _ in range(2))
    native(isa).tops(x, wanted, got, counts)
    REF.tops(x, wanted, slow, slow_counts)
    np.testing.assert_array_equal(counts, slow_counts)
    np.testing.assert_array_equal(got, slow)


def test_wrong_arguments_are_named() -> None:
    ops = native()
    cache = Cache(ops, "rows", [100], 3, 64)
    q, out = normal(np.random.default_rng(9), 2, 9, 64), np.empty((2, 9, 64), np.float32)
    one, at, counts = np.zeros(1, np.int32), np.zeros((1, 3, 4), np.int64), np.full((1, 3), 4, np.int32)
    for change, word in (
        ({"which": one + 2}, "which"),
        ({"at": at - 1}, "at"),
        ({"at": at + 10**9}, "at"),
        ({"counts": counts + 1}, "counts"),
        ({"at": at[:, :2]}, "at"),
        ({"out": out[:1]}, "out"),
    ):
        given = {"which": one, "at": at, "counts": counts, "out": out, **change}
        with pytest.raises(ValueError, match=word):
            ops.attend_tokens(q, cache.buf, "rows", given["which"], given["at"], given["counts"], 0.1, given["out"])
    starts, lo, hi = np.array([0, 2], np.int32), np.zeros((2, 3), np.int32), np.full((2, 3), 65, np.int32)
    tables = np.zeros((1, 3, 1), np.int32)
    with pytest.raises(ValueError, match="hi"):
        ops.attend(q, cache.buf, "rows", tables, starts, lo, hi, 0.1, out)
    with pytest.raises(ValueError, match="tables"):
        ops.attend(q, cache.buf, "rows", tables + 10**6, starts, lo, hi - 1, 0.1, out)


@each_isa()
@pytest.mark.parametrize("count", [4, 16, 24])
def test_some_channels_of_keys(isa: str, count: int) -> None:
    """Written and read again as if the others were not there."""
    rng = np.random.default_rng(10)
    ops, width = native(isa), -(-count // 16) * 16
    cache = Cache(ops, "bf16", [300], 3, 64)
    channels = np.stack([rng.permutation(64)[:count] for _ in range(3)]).astype(np.int32)
    some, whole = (ops.alloc(len(cache.buf) * 3 * width * 128).reshape(len(cache.buf), 3, -1) for _ in range(2))
    wide = np.zeros((300, 3, width), np.float32)
    wide[..., :count] = np.take_along_axis(cache.k[0], channels[None], 2)
    ops.keys_write(some, cache.rows(0, 0, 300), cache.k[0], channels)
    ops.keys_write(whole, cache.rows(0, 0, 300), wide)
    np.testing.assert_array_equal(some, whole)


@each_isa()
@pytest.mark.parametrize(("heads", "dim", "count"), [(9, 64, 16), (3, 64, 6), (6, 80, 32)])
def test_tokens_chosen_by_some_channels(isa: str, heads: int, dim: int, count: int) -> None:
    """The same as the twin where scores are exact: small whole numbers."""
    rng = np.random.default_rng(count)
    width = -(-count // 16) * 16
    lo, hi = ranges(4, (0, 1300), (7, 800), (0, 90), (3, 20))
    which, most = np.array([4, 0, 2, 5], np.int32), np.array([300, 64, 90, 9], np.int32)
    q = rng.integers(-3, 4, (6, heads, dim)).astype(np.float32)
    found = []
    for ops in (native(isa), REF):
        cache = Cache(ops, "bf16", [1300, 90], 3, dim)
        keys = np.random.default_rng(1).integers(-3, 4, (1300, 3, dim)).astype(np.float32)
        channels = np.stack([np.random.default_rng(g).permutation(dim)[:count] for g in range(3)]).astype(np.int32)
        buf = ops.alloc(len(cache.buf) * 3 * width * 128).reshape(len(cache.buf), 3, -1)
        ops.keys_write(buf, cache.rows(0, 0, 1300), keys, channels)
        ops.keys_write(buf, cache.rows(1, 0, 90), keys[:90], channels)
        tables = np.ascontiguousarray(cache.tables[[0, 0, 1, 0]])
        at, counts = np.full((4, 3, 310), 7, np.int64), np.empty((4, 3), np.int32)
        ops.choose(q, buf, channels, which, tables, lo, hi, most, 4, 8, at, counts)
        found.append((at, counts))
        alone = at[1:2].copy()
        ops.choose(q, buf, channels, which[1:2], tables[1:2], lo[1:2], hi[1:2], most[1:2], 4, 8, alone, counts[1:2])
        np.testing.assert_array_equal(alone, at[1:2])
        first = cache.rows(0, 7, 11)
        assert all(set(first) | set(cache.rows(0, 792, 800)) <= set(at[1, g, :64]) for g in range(3))
    for fast, slow in zip(*found, strict=True):
        np.testing.assert_array_equal(fast, slow)
    assert found[0][1].tolist() == [[300] * 3, [64] * 3, [90] * 3, [9] * 3]


@each_isa()
@pytest.mark.parametrize(("dim", "count"), [(64, 16), (64, 6), (80, 33), (32, 32)])
def test_labels_of_four_bits(isa: str, dim: int, count: int) -> None:
    """The same bytes as the twin's, and each number within half a step, but for what bfloat16 rounds."""
    rng = np.random.default_rng(count)
    k = 3 * normal(rng, 300, 3, dim)
    k[7], k[8, 0] = 2.5, np.nan  # no step; no number
    channels = np.stack([rng.permutation(dim)[:count] for _ in range(3)]).astype(np.int32)
    written = []
    for ops in (native(isa), REF):
        cache = Cache(ops, "bf16", [300], 3, dim)
        buf = ops.alloc(len(cache.buf) * 3 * 32 * (-(-count // 16) * 16 + 8)).reshape(len(cache.buf), 3, -1)
        ops.keys_write(buf, cache.rows(0, 0, 300), k, channels, 4)
        written.append(buf)
    rows = cache.rows(0, 0, 300)
    codes, step, least = (x[rows // 64, :, rows % 64] for x in labels_read(written[0]))
    number = np.isfinite(k).all(2)
    for fast, slow in zip(
        (codes, step, least), (x[rows // 64, :, rows % 64] for x in labels_read(written[1])), strict=True
    ):
        np.testing.assert_array_equal(fast[number], slow[number])
    some = np.take_along_axis(k, channels[None].astype(np.int64), 2)
    back = least[..., None] + step[..., None] * codes[..., :count]
    bound = 0.55 * step[..., None] + 0.01 * np.abs(some).max(2, keepdims=True)
    assert (np.abs(back - some) <= bound)[number].all()
    assert np.isnan(step[8, 0])
    assert not codes[8, 0].any()


@each_isa()
@pytest.mark.parametrize(("heads", "dim", "count"), [(9, 64, 16), (3, 64, 6), (6, 80, 32), (24, 64, 24)])
def test_tokens_chosen_by_labels_of_four_bits(isa: str, heads: int, dim: int, count: int) -> None:
    """The same as the twin where nothing is rounded: keys from -7 to 8, queries to 127."""
    rng = np.random.default_rng(count)
    channels = np.stack([rng.permutation(dim)[:count] for _ in range(3)]).astype(np.int32)
    keys = rng.integers(-7, 9, (1300, 3, dim)).astype(np.float32)
    q = rng.integers(-127, 128, (6, heads, dim)).astype(np.float32)
    for g in range(3):
        keys[:, g, channels[g, 0]], keys[:, g, channels[g, 1]] = -7, 8
        q[:, g * heads // 3 : (g + 1) * heads // 3, channels[g, 2]] = 127
    lo, hi = ranges(3, (0, 1300), (7, 800), (3, 20))
    which, most = np.array([4, 0, 5], np.int32), np.array([300, 64, 9], np.int32)
    found = []
    for ops in (native(isa), REF):
        cache = Cache(ops, "bf16", [1300], 3, dim)
        buf = ops.alloc(len(cache.buf) * 3 * 32 * (-(-count // 16) * 16 + 8)).reshape(len(cache.buf), 3, -1)
        ops.keys_write(buf, cache.rows(0, 0, 1300), keys, channels, 4)
        tables = np.ascontiguousarray(cache.tables[[0, 0, 0]])
        at, counts = np.full((3, 3, 310), 7, np.int64), np.empty((3, 3), np.int32)
        ops.choose(q, buf, channels, which, tables, lo, hi, most, 4, 8, at, counts, 4)
        found.append((at, counts))
        alone = np.empty_like(at[1:2])
        ops.choose(q, buf, channels, which[1:2], tables[1:2], lo[1:2], hi[1:2], most[1:2], 4, 8, alone, counts[1:2], 4)
        np.testing.assert_array_equal(alone, at[1:2])
    for fast, slow in zip(*found, strict=True):
        np.testing.assert_array_equal(fast, slow)


def test_wrong_choices_are_named() -> None:
    ops = native()
    q, buf = normal(np.random.default_rng(11), 2, 9, 64), ops.alloc(4 * 3 * 16 * 128).reshape(4, 3, -1)
    one, table = np.zeros(1, np.int32), np.zeros((1, 2), np.int32)
    usual = {
        "q": q,
        "buf": buf,
        "channels": np.zeros((3, 4), np.int32),
        "which": one,
        "tables": table,
        "lo": one,
        "hi": one + 100,
        "most": one + 8,
        "sink": 1,
        "recent": 1,
        "at": np.zeros((1, 3, 8), np.int64),
        "counts": np.zeros((1, 3), np.int32),
    }
    ops.choose(*usual.values())
    for name, value in (
        ("channels", usual["channels"] + 64),
        ("channels", np.zeros((3, 17), np.int32)),
        ("which", one + 2),
        ("tables", table + 4),
        ("lo", one - 1),
        ("lo", one + 101),
        ("hi", one + 129),
        ("most", one + 9),
        ("at", np.zeros((1, 2, 8), np.int64)),
        ("recent", -1),
        ("buf", np.zeros((4, 3, 1000), np.uint8)),
    ):
        with pytest.raises(ValueError, match=name):
            ops.choose(*{**usual, name: value}.values())
