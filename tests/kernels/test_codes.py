"""Pages of codes of four and of two bits: native operators beside the twin in numpy, and beside what they mean."""

import numpy as np
import pytest

from diastole.kernels import codes
from diastole.types import Array
from kernels.cases import PAGE, REF, bf16, each_isa, native, normal, same_bits

HEADS = 3


def masks_of(rng: np.random.Generator, pages: int, fine: int) -> tuple[Array, Array]:
    """The tokens of each page and head that keep four bits, as booleans and as bits."""
    chosen = np.argsort(rng.random((pages, HEADS, PAGE)), axis=-1) < fine
    return chosen, np.packbits(chosen, axis=-1, bitorder="little").view(np.uint64)[..., 0]


class Filled:
    """Pages in bf16 of random keys, whose channels differ, and values; ``sealed`` of them are codes too."""

    def __init__(self, isa: str, dim: int, fine: int, pages: int = 6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ops, self.dim, self.fine = native(isa), dim, fine
        shape = (pages * PAGE, HEADS, dim)
        self.k = normal(rng, *shape) * rng.uniform(0.1, 4, dim).astype(np.float32)
        self.k += np.where(rng.random(dim) < 0.1, 20, 0).astype(np.float32)
        self.v = normal(rng, *shape) * rng.uniform(0.1, 4, dim).astype(np.float32)
        self.k[:, :, 3], self.v[:, :, 5] = 2.5, 0  # channels in which nothing changes
        self.raw = np.zeros((pages, HEADS, self.ops.kv_page_bytes("bf16", dim)), np.uint8)
        self.ops.kv_write(self.raw, "bf16", np.arange(pages * PAGE), self.k, self.v)
        self.chosen, self.masks = masks_of(rng, pages, fine)
        self.at = np.arange(pages, dtype=np.int32)
        self.zip = np.zeros((pages, HEADS, self.ops.zip_page_bytes(dim, fine)), np.uint8)
        self.ops.zip_seal(self.raw, self.at, self.zip, self.at, self.masks, fine)

    def by_page(self, x: Array) -> Array:
        """(tokens, heads, dim) as (pages * heads, 64, dim), rounded as pages hold it."""
        return bf16(x).reshape(-1, PAGE, HEADS, self.dim).swapaxes(1, 2).reshape(-1, PAGE, self.dim)

    def opened(self) -> tuple[Array, Array]:
        k, v = (np.empty((len(self.zip), PAGE, HEADS, self.dim), np.float32) for _ in range(2))
        self.ops.zip_open(self.zip, self.at, self.fine, k, v)
        return k, v


@each_isa()
@pytest.mark.parametrize("dim", [16, 64, 80, 256])
@pytest.mark.parametrize("fine", [0, 16, 36, 40, 44, 64])
def test_the_twin_reads_and_writes_the_same_bytes(isa: str, dim: int, fine: int) -> None:
    cache = Filled(isa, dim, fine, pages=2)
    assert cache.zip.shape[2] == codes.page_bytes(dim, fine)
    mine = codes.seal(cache.by_page(cache.k), cache.by_page(cache.v), cache.chosen.reshape(-1, PAGE))
    theirs = cache.zip.reshape(mine.shape)
    np.testing.assert_array_equal(theirs, mine)
    k, v = codes.unseal(theirs, dim, fine)
    for fast, slow in zip(cache.opened(), (k, v), strict=True):
        slow = slow.reshape(len(cache.zip), HEADS, PAGE, dim).swapaxes(1, 2)
        np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)


@each_isa()
def test_what_is_read_is_near(isa: str) -> None:
    """No further away than a step where four bits are kept; channels that are far from zero are no exception."""
    cache = Filled(isa, 64, 36)
    for seen, given, axis in zip(cache.opened(), (cache.k, cache.v), (2, 3), strict=True):
        given = bf16(given).reshape(seen.shape).swapaxes(1, 2)  # (pages, heads, tokens, dim)
        error = np.abs(seen.swapaxes(1, 2) - given)
        fine, rest = error[cache.chosen], error[~cache.chosen]
        assert np.linalg.norm(fine) / np.linalg.norm(given[cache.chosen]) < 0.12
        assert np.sqrt((fine**2).mean()) < 0.4 * np.sqrt((rest**2).mean())
        if axis == 2:  # keys have steps by channel
            span = given.max(2) - given.min(2)
            assert (error.max(2)[:, :, 4:] <= 0.27 * span[:, :, 4:] + 1e-3).all()


@each_isa()
@pytest.mark.parametrize(("heads", "dim", "fine"), [(9, 64, 36), (3, 16, 64), (12, 80, 44), (6, 128, 0), (48, 32, 16)])
@pytest.mark.parametrize("rows", [1, 20])
def test_attention_over_both_kinds_of_pages(isa: str, heads: int, dim: int, fine: int, rows: int) -> None:
    """Against what pages mean, read out; some pages are not sealed, and the last one is not full."""
    cache = Filled(isa, dim, fine, pages=11)
    ops, rng = cache.ops, np.random.default_rng(3)
    slots = np.full(11, -1, np.int32)
    order = rng.permutation(11).astype(np.int32)
    slots[order[8]], slots[order[10]] = order[8], order[10]
    n = 10 * PAGE + 37
    q = normal(rng, rows, heads, dim)
    starts, lo = np.array([0, rows], np.int32), np.zeros(rows, np.int32)
    hi = np.array([n - i % 20 for i in range(rows)], np.int32)
    hi[-1] = 3 * PAGE
    results = []
    ref_raw = np.zeros((11, HEADS, REF.kv_page_bytes("bf16", dim)), np.uint8)
    REF.kv_write(ref_raw, "bf16", np.arange(11 * PAGE), cache.k, cache.v)
    for own, raw in ((ops, cache.raw), (REF, ref_raw)):
        out, lse = np.full_like(q, 7), np.full((rows, heads), 7, np.float32)
        own.zip_attend(q, cache.zip, raw, slots, fine, order[None], starts, lo, hi, 0.1, out, lse)
        results.append((out, lse))
    assert np.linalg.norm(results[0][0] - results[1][0]) <= 1e-2 * np.linalg.norm(results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], atol=0.06)
    alone, last, one = np.empty_like(q[:1]), slice(rows - 1, rows), np.array([0, 1], np.int32)
    ops.zip_attend(q[last], cache.zip, cache.raw, slots, fine, order[None], one, lo[:1], hi[last], 0.1, alone)
    same_bits(alone[0], results[0][0][-1])


@each_isa()
def test_pages_that_are_not_sealed_give_the_same_bits(isa: str) -> None:
    cache = Filled(isa, 64, 36, pages=11)
    q, one = normal(np.random.default_rng(4), 5, 9, 64), np.array([0, 5], np.int32)
    lo, hi = np.zeros(5, np.int32), np.array([700, 1, 64, 511, 513], np.int32)
    table, out, own = cache.at[None], np.empty_like(q), np.empty_like(q)
    cache.ops.attend(q, cache.raw, "bf16", table, one, lo, hi, 0.1, out)
    cache.ops.zip_attend(q, cache.zip, cache.raw, cache.at, 36, table, one, lo, hi, 0.1, own)
    same_bits(own, out)


def test_wrong_arguments_are_named() -> None:
    cache = Filled("", 64, 36)
    ops = cache.ops
    q = normal(np.random.default_rng(5), 1, 9, 64)
    one, lo = np.array([0, 1], np.int32), np.zeros(1, np.int32)
    slots = np.full(6, -1, np.int32)
    good = {"slots": slots, "fine": 36, "tables": cache.at[None], "lo": lo, "hi": lo + 128, "out": np.empty_like(q)}
    for change, word in (
        ({"hi": lo + 100}, "hi: a row sees a part"),
        ({"lo": lo + 1}, "lo: a row sees a part"),
        ({"slots": slots + 9}, "slots"),
        ({"slots": slots[:3]}, "slots"),
        ({"fine": 40}, "zip"),
        ({"fine": 3}, "fine"),
        ({"tables": cache.at[None] + 100}, "tables"),
        ({"out": np.empty_like(q)[:, :3]}, "out"),
    ):
        x = good | change
        with pytest.raises(ValueError, match=word):
            ops.zip_attend(
                q, cache.zip, cache.raw, x["slots"], x["fine"], x["tables"], one, x["lo"], x["hi"], 0.1, x["out"]
            )
    with pytest.raises(ValueError, match="masks"):
        ops.zip_seal(cache.raw, cache.at, cache.zip, cache.at, cache.masks & np.uint64(7), 36)
    with pytest.raises(ValueError, match="pages"):
        ops.zip_seal(cache.raw, cache.at, cache.zip, cache.at + 6, cache.masks, 36)
