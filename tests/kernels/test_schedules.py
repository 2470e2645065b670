"""Schedules: all give the same bits, every split is done once, and shares are as equal as splits allow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.kernels.table import compiled
from diastole.types import Array
from kernels.cases import REF, Cache, each_isa, native, normal, same_bits, softmax

SCHEDULES = ("lean", "shares", "heads", "queue", "fixed")
FORMATS = ("f32", "bf16", "int8", "rows", "rows8")
MIXED = ([1300, 70, 600], [1, 3, 20])  # tokens of three streams, and how many of their last rows are asked for


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    yield
    native()


def asked(lengths: list[int], rows: list[int]) -> tuple[Array, Array, Array]:
    """starts, lo, hi of a batch of last rows; every third sees a window only, and the last nothing."""
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    hi = np.concatenate([np.arange(n - r + 1, n + 1) for n, r in zip(lengths, rows, strict=True)]).astype(np.int32)
    lo = np.where(np.arange(len(hi)) % 3 == 2, np.maximum(hi - 530, 0), 0).astype(np.int32)
    lo[-1] = hi[-1]
    return starts, lo, hi


class Asked:
    """A batch on a cache, to be attended to by any schedule."""

    def __init__(self, cache: Cache, rows: list[int], group: int = 3) -> None:
        self.cache = cache
        self.starts, self.lo, self.hi = asked(cache.lengths, rows)
        dim = cache.k[0].shape[2]
        self.q = normal(np.random.default_rng(7), len(self.hi), cache.buf.shape[1] * group, dim)

    def by(
        self, schedule: str, split: int = 512, workers: int = 2, parts: int = 3, spent: Array | None = None
    ) -> tuple[Array, Array]:
        c, out, lse = self.cache, np.full_like(self.q, 9), np.full(self.q.shape[:2], 9, np.float32)
        c.ops.attend_by(
            self.q, c.buf, c.fmt, c.tables, self.starts, self.lo, self.hi, 0.2, out, lse,
            schedule, split, workers, parts, spent,
        )  # fmt: skip
        return out, lse

    def plain(self) -> tuple[Array, Array]:
        c, out, lse = self.cache, np.full_like(self.q, 9), np.full(self.q.shape[:2], 9, np.float32)
        c.ops.attend(self.q, c.buf, c.fmt, c.tables, self.starts, self.lo, self.hi, 0.2, out, lse)
        return out, lse


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dim", [64, 80])
def test_all_schedules_and_workers_give_the_same_bits(isa: str, fmt: str, dim: int) -> None:
    batch = Asked(Cache(native(isa), fmt, MIXED[0], 3, dim), MIXED[1])
    for split in (64, 192, 512):
        want = batch.by("lean", split, workers=1)
        for schedule, workers in product(SCHEDULES, (1, 2, 3, 7, 40)):
            for got, wanted in zip(batch.by(schedule, split, workers), want, strict=True):
                same_bits(got, wanted)
    for got, wanted in zip(batch.by("queue"), batch.plain(), strict=True):
        same_bits(got, wanted)


@cache
def twin(fmt: str, split: int) -> tuple[Array, Array]:
    return Asked(Cache(REF, fmt, MIXED[0], 2, 32), MIXED[1]).by("lean", split)


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("split", [64, 512])
def test_near_the_twin_s(isa: str, fmt: str, split: int) -> None:
    out, lse = Asked(Cache(native(isa), fmt, MIXED[0], 2, 32), MIXED[1]).by("lean", split)
    want, want_lse = twin(fmt, split)
    bound = {"f32": 2e-6, "bf16": 6e-3, "rows": 6e-3, "int8": 2e-2, "rows8": 2e-2}[fmt]
    assert np.linalg.norm(out - want) <= bound * np.linalg.norm(want)
    np.testing.assert_allclose(lse, want_lse, atol=10 * bound)
    assert (out[-1] == 0).all()
    assert np.isneginf(lse[-1]).all()


def test_the_twin_merges_to_what_it_computes_at_once() -> None:
    batch = Asked(Cache(REF, "f32", MIXED[0], 2, 32), MIXED[1])
    for got, want in zip(batch.by("lean", 64), batch.plain(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@each_isa()
@pytest.mark.parametrize("split", [64, 128, 256, 512])
def test_parts_of_any_size_add_up_to_softmax(isa: str, split: int) -> None:
    """2e-6 of the whole, in float32, for every schedule."""
    batch = Asked(Cache(native(isa), "f32", [2100, 40], 3, 64), [2, 1])
    stored = [batch.cache.read(b) for b in (0, 1)]
    want = np.zeros(batch.q.shape)
    for t, b in enumerate((0, 0, 1)):
        k, v = stored[b]
        p, _ = softmax(batch.q[t] * np.float32(0.2), k, batch.lo[t], batch.hi[t])
        want[t] = np.einsum("hn,nhd->hd", p, v.astype(np.float64).repeat(3, axis=1))
    for schedule in SCHEDULES:
        out, _ = batch.by(schedule, split)
        assert np.linalg.norm(out - want) <= 2e-6 * np.linalg.norm(want)


@each_isa()
def test_neighbours_change_no_bit(isa: str) -> None:
    """A row alone, beside others, and beside so many that all shares fall elsewhere."""
    cache = Cache(native(isa), "bf16", [1300, 900], 3, 64)
    both = Asked(cache, [2, 16])
    want = both.by("lean", 128, workers=5)
    alone = Asked(cache, [2, 0])
    alone.q, alone.lo, alone.hi = both.q[:2], both.lo[:2], both.hi[:2]
    for got, wanted in zip(alone.by("lean", 128, workers=3), want, strict=True):
        same_bits(got, wanted[:2])


def test_more_workers_than_threads_wait_for_nobody() -> None:
    batch = Asked(Cache(native(threads=1), "bf16", [4000], 3, 64), [2])
    want = batch.plain()
    for schedule in SCHEDULES:
        for got, wanted in zip(batch.by(schedule, workers=300, parts=9), want, strict=True):
            same_bits(got, wanted)


def test_what_was_spent() -> None:
    batch = Asked(Cache(native(), "bf16", [4000, 700], 3, 64), [1, 1])
    batch.lo[:], batch.hi[:] = 0, [4000, 700]
    for schedule in SCHEDULES:
        spent = np.full((2, 3), -1.0)
        batch.by(schedule, 128, spent=spent)
        seconds, merging, splits = spent.T
        assert splits.sum() == 3 * (32 + 6)
        assert (seconds >= merging).all()
        assert seconds.sum() > 0
        assert (merging.sum() > 0) == (schedule in {"lean", "shares", "fixed"})  # only they cut an output
    few = np.zeros((2, 3))
    batch.hi[:] = 20  # too little to wake anybody for
    batch.by("lean", spent=few)
    assert few[:, 2].tolist() == [6, 0]


def planned(schedule: str, rows: list[int], hi: list[int], split: int, workers: int, parts: int = 2) -> list[Array]:
    """Shares: each an array (items, 3) of output, first split, one behind the last."""
    native()
    module = compiled()
    assert module is not None
    found = module.plan(
        schedule, np.array(rows, np.int32), np.zeros(len(hi), np.int32), np.array(hi, np.int32), split, workers, parts
    )
    shares = 1 if schedule == "queue" else workers
    return [np.array([i[1:] for i in found if i[0] == w], int).reshape(-1, 3) for w in range(shares)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SCHEDULES),
    st.lists(st.tuples(st.integers(1, 48), st.integers(0, 9000)), min_size=1, max_size=30),
    st.sampled_from([64, 128, 512]),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_every_split_is_done_once(
    schedule: str, outputs: list[tuple[int, int]], split: int, workers: int, parts: int
) -> None:
    rows, hi = map(list, zip(*outputs, strict=True))
    items = np.concatenate(planned(schedule, rows, hi, split, workers, parts))
    done = sorted((int(o), s) for o, s0, s1 in items for s in range(s0, s1))
    assert done == [(o, s) for o, n in enumerate(hi) for s in range(-(-n // split))]
    assert {int(o) for o in items[:, 0]} == set(range(len(hi)))  # also those that see nothing are written


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 108])
@pytest.mark.parametrize("schedule", ["lean", "shares"])
def test_equal_pieces_are_shared_as_equally_as_can_be(schedule: str, workers: int) -> None:
    """At most ceil(T / P) each, contiguous in the list of all, however many heads there are."""
    for heads, splits in ((3, 14), (1, 300), (9, 1), (24, 7)):
        shares = planned(schedule, [3] * heads, [splits * 128] * heads, 128, workers)
        counts = [int((s[:, 2] - s[:, 1]).sum()) for s in shares]
        assert max(counts) <= -(-heads * splits // workers)
        places = [(int(o), int(s0)) for share in shares for o, s0, _ in share]
        assert places == sorted(places)


def test_a_prompt_s_rows_weigh_more_than_a_single_one() -> None:
    """One list for both: the share that holds a chunk of a prompt gets fewer tokens."""
    one, other = planned("lean", [48, 3], [4096, 4096], 64, 2)
    tokens = [int((s[:, 2] - s[:, 1]).sum()) * 64 for s in (one, other)]
    assert set(one[:, 0]) == {0}
    assert tokens[0] < tokens[1]


def test_what_does_not_fit_is_not_cut() -> None:
    """Partial results of many rows over a long context would take gigabytes."""
    rows, hi = [48] * 90, [1 << 20] * 90
    for schedule in SCHEDULES:
        items = np.concatenate(planned(schedule, rows, hi, 64, 3, 5))
        assert len(items) == len(rows)


def test_if_not_all_fit_those_are_cut_that_a_border_runs_through() -> None:
    """40 contexts for three workers: 13 1/3 each."""
    shares = planned("lean", [3] * 40, [1 << 17] * 40, 64, 3)
    assert [len(s) for s in shares] == pytest.approx([13 + 2048 / 3, 12 + 4 * 2048 / 3, 13 + 2048 / 3], abs=1)
    counts = [int((s[:, 2] - s[:, 1]).sum()) for s in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schedule": "best"}, "there are lean"),
        ({"split": 100}, "split must be a multiple of 64"),
        ({"split": 0}, "split"),
        ({"workers": -1}, "workers"),
        ({"parts": 0}, "parts"),
        ({"spent": np.zeros((3, 3))}, "spent"),
        ({"spent": np.zeros((2, 3), np.float32)}, "spent"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], word: str) -> None:
    batch = Asked(Cache(native(), "bf16", [100], 3, 64), [1])
    with pytest.raises(ValueError, match=word):
        batch.by(**{"schedule": "lean", **change})  # type: ignore[arg-type]
