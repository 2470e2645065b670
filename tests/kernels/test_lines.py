"""Who looks before attending: weights summed by token, the lines that hold most of them, attention along these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from diastole.types import Array
from kernels.cases import PAGE, REF, Cache, each_isa, native, normal, same_bits, softmax

FORMATS = ("f32", "bf16", "int8", "rows", "rows8")
BOUND = {"f32": 2e-6, "bf16": 6e-3, "rows": 6e-3, "int8": 2e-2, "rows8": 2e-2}
LENGTH, FIRST, HEADS = 1300, 1088, 9  # the block's rows are 1088..1299


@dataclass
class Found:
    """What choose_lines gives for one block."""

    bands: Array
    columns: Array
    counts: Array
    covered: Array

    @classmethod
    def room(cls) -> Found:
        pages = -(-LENGTH // PAGE)
        shape = (1, HEADS)
        return cls(
            np.full((*shape, pages), 7, np.uint8),
            np.full((*shape, FIRST), -1, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.float32),
        )


def block(cache: Cache, q: Array, rows: Array, share: float, sink: int = 4) -> Found:
    """Lines of the block, judged by the rows at these positions: q (R, H, D)."""
    found = Found.room()
    cache.ops.choose_lines(
        q, cache.buf, cache.fmt, cache.tables[:1], np.array([0, len(q)], np.int32), np.zeros(len(q), np.int32),
        (rows + 1).astype(np.int32), 0.3, share, np.array([FIRST], np.int32), sink,
        found.bands, found.columns, found.counts, found.covered,
    )  # fmt: skip
    return found


def attend(cache: Cache, q: Array, found: Found, first: int = FIRST) -> tuple[Array, Array]:
    out, lse = np.full_like(q, 7.0), np.full(q.shape[:2], 7.0, np.float32)
    hi = np.arange(first, first + len(q), dtype=np.int32) + 1
    starts = np.array([0, len(q)], np.int32)
    cache.ops.attend_lines(
        q, cache.buf, cache.fmt, cache.tables[:1], starts, hi, 0.3, found.bands, found.columns, found.counts, out, lse
    )
    return out, lse


def mask(found: Found, head: int, position: int) -> Array:
    """Which tokens a row sees."""
    at = np.arange(position + 1)
    seen = found.bands[0, head, position // PAGE - at // PAGE] > 0
    seen[found.columns[0, head, : found.counts[0, head]]] = True
    return seen


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dim", [64, 80])
def test_masses_are_summed_softmax_weights(isa: str, fmt: str, dim: int) -> None:
    rng = np.random.default_rng(1)
    cache = Cache(native(isa), fmt, [1100, 70], 3, dim)
    q, starts = normal(rng, 70, 9, dim), np.array([0, 50, 70], np.int32)  # more rows than walk together
    lo = rng.integers(0, 60, 70).astype(np.int32)
    hi = np.concatenate([rng.integers(500, 1100, 50), rng.integers(60, 70, 20)]).astype(np.int32)
    hi[3] = lo[3]  # sees nothing
    out = np.empty((2, 3, 1100), np.float32)
    cache.ops.masses(q, cache.buf, fmt, cache.tables, starts, lo, hi, 0.3, out)
    want = np.zeros_like(out)
    for t in range(70):
        b = int(t >= starts[1])
        k, _ = cache.read(b)
        weights, _ = softmax(q[t] * np.float32(0.3), k, lo[t], hi[t])
        want[b, :, : len(k)] += weights.reshape(3, 3, -1).sum(1)
    np.testing.assert_allclose(out.sum(2), want.sum(2), rtol=1e-4)
    assert np.linalg.norm(out - want) <= 3 * BOUND[fmt] * np.linalg.norm(want)
    REF.masses(q, _as_f32(cache), "f32", cache.tables, starts, lo, hi, 0.3, slow := np.empty_like(out))
    np.testing.assert_allclose(slow, want, atol=1e-5)


def _as_f32(cache: Cache) -> Array:
    """The cache's rows in the twin's own pages."""
    heads, dim = cache.k[0].shape[1:]
    buf = REF.alloc(len(cache.buf) * heads * REF.kv_page_bytes("f32", dim)).reshape(len(cache.buf), heads, -1)
    for b, n in enumerate(cache.lengths):
        REF.kv_write(buf, "f32", cache.rows(b, 0, n), *cache.read(b))
    return buf


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("share", [0.4, 0.955])
def test_lines_hold_what_they_say(isa: str, fmt: str, share: float) -> None:
    cache = Cache(native(isa), fmt, [LENGTH], 3, 64)
    q, rows = sampled(30)
    found = block(cache, q, rows, share)
    k, _ = cache.read(0)
    for h in range(HEADS):
        assert found.bands[0, h, 0] == 1
        assert found.columns[0, h, :4].tolist() == [0, 1, 2, 3]
        held = [
            softmax(q[i] * np.float32(0.3), k, 0, p + 1)[0][h, : p + 1][mask(found, h, p)].sum()
            for i, p in enumerate(rows)
        ]
        assert np.mean(held) == pytest.approx(found.covered[0, h], abs=0.01)  # nothing is counted twice
    assert (found.covered >= share).all()
    assert (found.counts + PAGE * found.bands.sum(2)).max() < LENGTH


def sampled(n: int) -> tuple[Array, Array]:
    """Queries of some rows of the block, and their positions."""
    rng = np.random.default_rng(2)
    return normal(rng, n, 9, 64) * 1.5, np.sort(rng.choice(np.arange(FIRST, LENGTH), n, replace=False))


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_lines_are_those_of_the_twin(isa: str, fmt: str) -> None:
    q, rows = sampled(12)
    found, twin = (block(Cache(ops, fmt, [LENGTH], 3, 64), q, rows, 0.4) for ops in (native(isa), REF))
    np.testing.assert_allclose(found.covered, twin.covered, atol=0.02)
    lengths = [(f.counts + PAGE * f.bands.sum(2)).astype(float) for f in (found, twin)]
    np.testing.assert_allclose(*lengths, rtol=0.03, atol=PAGE)  # near ties may be broken otherwise


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_attend_to_their_lines_and_no_token_twice(isa: str, fmt: str) -> None:
    rng = np.random.default_rng(3)
    fast, slow = (Cache(ops, fmt, [LENGTH], 3, 64) for ops in (native(isa), REF))
    q, found = normal(rng, LENGTH - FIRST, 9, 64), Found.room()
    found.bands[...] = rng.random(found.bands.shape) < 0.2
    found.bands[..., 0] = 1
    for h in range(HEADS):
        n = found.counts[0, h] = int(rng.choice([0, 1, 100, 700]))  # some lie on bands, none, more than a split
        found.columns[0, h, :n] = np.sort(rng.choice(FIRST, n, replace=False))
    (out, lse), (want, total) = attend(fast, q, found), attend(slow, q, found)
    assert np.linalg.norm(out - want) <= BOUND[fmt] * np.linalg.norm(want)
    np.testing.assert_allclose(lse, total, atol=10 * BOUND[fmt])
    k, _ = fast.read(0)
    for h, p in ((0, FIRST), (4, 1200), (8, LENGTH - 1)):
        weights, _ = softmax(q[p - FIRST] * np.float32(0.3), k, 0, p + 1)
        share = weights[h, : p + 1][mask(found, h, p)].sum()
        _, all_of_it = softmax(q[p - FIRST] * np.float32(0.3), k, 0, p + 1)
        assert lse[p - FIRST, h] == pytest.approx(all_of_it[h] + np.log(share), abs=10 * BOUND[fmt])
    part, _ = attend(fast, q[40:90], found, FIRST + 40)  # a row does not depend on those beside it
    same_bits(part, out[40:90])


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_all_bands_are_everything(isa: str, fmt: str) -> None:
    cache = Cache(native(isa), fmt, [LENGTH], 3, 64)
    q, found = normal(np.random.default_rng(4), LENGTH - FIRST, 9, 64), Found.room()
    found.bands[...] = 1
    found.counts[...] = 50
    found.columns[..., :50] = np.arange(50)  # all on the bands
    out, lse = attend(cache, q, found)
    hi = np.arange(FIRST, LENGTH) + 1
    streams = np.zeros(len(q), int)
    want, total = cache.attend(q, streams, np.zeros_like(hi), hi, 0.3)
    same_bits(out, want)
    same_bits(lse, total)


@each_isa()
def test_all_of_the_weight_is_every_line_that_has_some(isa: str) -> None:
    cache = Cache(native(isa), "bf16", [LENGTH], 3, 64)
    rows = np.array([FIRST, 1200])
    found = block(cache, normal(np.random.default_rng(5), 2, 9, 64), rows, 1.0)
    np.testing.assert_allclose(found.covered, 1.0, atol=1e-5)


def test_what_is_not_a_number_ends_the_choice() -> None:
    cache = Cache(native(), "bf16", [LENGTH], 3, 64)
    q = np.full((2, 9, 64), np.nan, np.float32)
    found = block(cache, q, np.array([FIRST, 1200]), 0.9)
    assert (found.bands[..., 0] == 1).all()
    assert (found.counts >= 4).all()


def test_wrong_arguments_are_named() -> None:
    cache = Cache(native(), "bf16", [LENGTH], 3, 64)
    q = normal(np.random.default_rng(6), 10, 9, 64)
    good = Found.room()
    good.bands[...] = 1
    for change, word in (
        ({"bands": good.bands * 0}, "bands"),
        ({"bands": good.bands[:, :3].copy()}, "bands"),
        ({"counts": good.counts + 2}, "columns"),  # they are -1
        ({"counts": good.counts + LENGTH}, "counts"),
        ({"columns": good.columns[:, :2].copy()}, "columns"),
    ):
        with pytest.raises(ValueError, match=word):
            attend(cache, q, Found(**{**vars(good), **change}))
    with pytest.raises(ValueError, match="table"):
        attend(cache, q, good, 10_000)
    with pytest.raises(ValueError, match="first"):
        block(cache, q, np.arange(10), 0.9)
