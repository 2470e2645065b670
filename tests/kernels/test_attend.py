"""Paged keys and values: what is stored, and attention over it against softmax in float64."""

import numpy as np
import pytest

from kernels.cases import KV_FORMATS, PAGE, REF, Cache, bf16, each_isa, native, normal, softmax


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
@pytest.mark.parametrize("dim", [16, 64, 80, 256])
def test_what_is_written_is_read(isa: str, fmt: str, dim: int) -> None:
    cache = Cache(native(isa), fmt, [130, 5], 3, dim)
    for b in (0, 1):
        k, v = cache.read(b)
        for got, given in ((k, cache.k[b]), (v, cache.v[b])):
            if fmt == "f32":
                np.testing.assert_array_equal(got, given)
            elif fmt == "bf16":
                np.testing.assert_array_equal(got, bf16(given))
            else:
                step = np.abs(given).max(-1, keepdims=True) / 127
                assert (np.abs(got - given) <= step * 0.5001).all()


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_writing_a_token_leaves_its_neighbours(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [64], 2, 32)
    k, v = cache.read(0)
    rng = np.random.default_rng(1)
    for slot in (0, 1, 17, 30, 63):
        wide = normal(rng, 1, 6, 32)  # key and value are views into one buffer
        cache.ops.kv_write(cache.buf, fmt, cache.rows(0, slot, slot + 1), wide[:, 2:4], wide[:, 4:])
        k2, v2 = cache.read(0)
        others = np.arange(64) != slot
        np.testing.assert_array_equal(k2[others], k[others])
        np.testing.assert_array_equal(v2[others], v[others])
        np.testing.assert_allclose(k2[slot], wide[0, 2:4], atol=0.03)
        np.testing.assert_allclose(v2[slot], wide[0, 4:], atol=0.03)
        k, v = k2, v2


def quantised(q: np.ndarray) -> np.ndarray:
    """Rows of q in 127 steps of their largest, as int8 pages are multiplied."""
    scale = np.abs(q).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(q * inverse) * scale


def check(cache: Cache, q: np.ndarray, streams: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> None:
    """Every element within what the format's rounding of weights can cause, and lse as softmax has it."""
    scale = np.float32(0.2)
    out, lse = cache.attend(q, streams, lo, hi, 0.2)
    stored = [cache.read(b) for b in range(len(cache.lengths))]
    for t, b in enumerate(streams):
        k, v = stored[b]
        scaled = q[t] * scale
        scaled = scaled if cache.fmt == "f32" else bf16(scaled) if cache.fmt == "bf16" else quantised(scaled)
        p, total = softmax(scaled, k, lo[t], hi[t])  # (H, n)
        v = v.astype(np.float64).repeat(q.shape[1] // v.shape[1], axis=1)
        exact = np.einsum("hn,nhd->hd", p, v)
        # A score's error grows like a random walk over its dim products; a weight's relative error is the score's.
        products = np.einsum("hd,nhd->hn", np.abs(scaled), np.abs(k).repeat(q.shape[1] // k.shape[1], axis=1)).max()
        error = 2e-6 + 2.0**-24 * np.sqrt(q.shape[2]) * products
        slack = error * np.einsum("hn,nhd->hd", p, np.abs(v)) + 1e-6
        if cache.fmt == "bf16":  # every weight is rounded to a significand of 8 bits
            slack += 2.0**-8 * np.einsum("hn,nhd->hd", p, np.abs(v))
        if cache.fmt == "int8":  # weight times value scale, in 255 steps of the page's largest
            steps = np.abs(v).max(-1).T / 127  # (H, n)
            for page in range(0, len(k), PAGE):
                seen = p[:, page : page + PAGE] > 0
                top = (p * steps)[:, page : page + PAGE].max(-1)
                units = np.einsum("hn,nhd->hd", seen / steps[:, page : page + PAGE], np.abs(v[page : page + PAGE]))
                slack += 0.5 * top[:, None] / 255 * units
        assert (np.abs(out[t] - exact) <= slack).all(), (t, np.abs(out[t] - exact).max(), slack.max())
        np.testing.assert_allclose(lse[t], total, rtol=1e-6, atol=2 * error)


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 16), (9, 3, 64), (4, 4, 80), (8, 1, 32), (4, 2, 256)])
def test_streams_windows_and_groups(isa: str, fmt: str, heads: int, kv_heads: int, dim: int) -> None:
    """Three streams of different lengths: causal rows, windows, single tokens, rows that see nothing."""
    cache = Cache(native(isa), fmt, [150, 3, 70], kv_heads, dim)
    streams = np.array([0] * 7 + [1] * 2 + [2] * 6)
    lo = np.array([0, 0, 100, 64, 149, 63, 20, 0, 2, 0, 0, 5, 5, 69, 30])
    hi = np.array([150, 1, 140, 128, 150, 65, 20, 3, 3, 70, 64, 6, 5, 70, 33])
    check(cache, normal(np.random.default_rng(2), 15, heads, dim), streams, lo, hi)


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_long_contexts(isa: str, fmt: str, rows: int) -> None:
    """1100 tokens: three splits, merged; also from a window that starts in the second."""
    cache = Cache(native(isa), fmt, [1100], 2, 32)
    hi = np.arange(1100 - rows + 1, 1101)
    lo = np.where(np.arange(rows) % 3 == 2, 600, 0)
    check(cache, normal(np.random.default_rng(3), rows, 6, 32), np.zeros(rows, int), lo, hi)


@each_isa()
def test_as_many_heads_share_a_key_as_a_tile_holds(isa: str) -> None:
    cache = Cache(native(isa), "bf16", [100], 1, 16)
    check(
        cache, normal(np.random.default_rng(4), 3, 48, 16), np.zeros(3, int), np.zeros(3, int), np.array([100, 64, 7])
    )


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_attend_is_near_the_twin_s(isa: str, fmt: str) -> None:
    q = normal(np.random.default_rng(5), 8, 4, 48)
    streams, lo, hi = np.zeros(8, int), np.zeros(8, int), np.arange(193, 201)
    (fast, fast_lse), (slow, slow_lse) = (
        Cache(ops, fmt, [200], 2, 48).attend(q, streams, lo, hi) for ops in (native(isa), REF)
    )
    bound = {"f32": 2e-6, "bf16": 4e-3, "int8": 1.5e-2}[fmt]
    assert np.linalg.norm(fast - slow) < bound * np.linalg.norm(slow)
    np.testing.assert_allclose(fast_lse, slow_lse, atol=10 * bound)


@each_isa()
def test_a_row_that_sees_nothing(isa: str) -> None:
    cache = Cache(native(isa), "bf16", [600], 2, 32)
    q, zero = normal(np.random.default_rng(6), 3, 4, 32), np.zeros(3, int)
    out, lse = cache.attend(q, zero, np.array([0, 5, 9]), np.array([0, 600, 3]))
    assert (out[[0, 2]] == 0).all()
    assert (lse[[0, 2]] == -np.inf).all()
    assert np.isfinite(lse[1]).all()
    assert (out[1] != 0).any()
    out, lse = cache.attend(q[:0], zero[:0], zero[:0], zero[:0])
    assert out.shape == (0, 4, 32)


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_one_visible_token_is_returned_as_stored(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [600], 2, 32)
    at = np.array([0, 63, 64, 511, 512, 599])
    out, _ = cache.attend(normal(np.random.default_rng(7), 6, 2, 32), np.zeros(6, int), at, at + 1)
    np.testing.assert_allclose(out, cache.read(0)[1][at], rtol=2e-6, atol=1e-7)


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_what_a_page_held_before_does_not_matter(isa: str, fmt: str) -> None:
    """A page that another stream left full of NaN and infinity gives the same bits as a new one."""
    q = normal(np.random.default_rng(8), 4, 4, 32)
    lo, hi = np.array([0, 0, 3, 4]), np.array([5, 70, 66, 5])

    def run(poison: float) -> np.ndarray:
        cache = Cache(native(isa), fmt, [71], 2, 32)
        bad = np.full((PAGE, 2, 32), poison, np.float32)
        for page in range(len(cache.buf)):
            cache.ops.kv_write(cache.buf, fmt, np.arange(page * PAGE, (page + 1) * PAGE), bad, bad)
        cache.write(0, 0, 71)
        return cache.attend(q, np.zeros(4, int), lo, hi)[0]

    clean = run(0.0)
    assert np.isfinite(clean).all()
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        np.testing.assert_array_equal(run(poison).view(np.uint32), clean.view(np.uint32))


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_what_is_no_number_stays_with_its_row(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [100], 2, 32)
    q = normal(np.random.default_rng(9), 3, 4, 32)
    clean, _ = cache.attend(q, np.zeros(3, int), np.zeros(3, int), np.full(3, 100))
    q[1, 2, 5] = np.nan
    out, _ = cache.attend(q, np.zeros(3, int), np.zeros(3, int), np.full(3, 100))
    assert np.isnan(out[1, 2]).all()
    out[1, 2] = clean[1, 2]
    np.testing.assert_array_equal(out, clean)


@each_isa()
def test_pages_behind_a_window_may_be_gone(isa: str) -> None:
    """Ids of pages that no row sees are not read."""
    cache = Cache(native(isa), "bf16", [300], 2, 32)
    q = normal(np.random.default_rng(10), 2, 4, 32)
    at = (np.zeros(2, int), np.array([200, 210]), np.array([299, 300]))
    before, _ = cache.attend(q, *at)
    cache.tables[0, :3] = -1
    np.testing.assert_array_equal(cache.attend(q, *at)[0], before)


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_large_scores_do_not_overflow(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [600], 1, 16)
    q = normal(np.random.default_rng(11), 2, 1, 16) * np.float32(1e4)
    out, lse = cache.attend(q, np.zeros(2, int), np.zeros(2, int), np.full(2, 600))
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


def test_pages_are_zeroed_aligned_and_lazy() -> None:
    ops = native()
    buf = ops.alloc(256 << 30)  # more than there is: only what is touched is taken
    assert buf.ctypes.data % (2 << 20) == 0
    buf[123456789] = 7
    assert buf[123456788] == 0
    assert buf[-1] == 0
    small = ops.alloc(100)
    assert small.shape == (100,)
    assert not small.any()
    assert small.ctypes.data % 64 == 0
    assert ops.alloc(0).shape == (0,)
