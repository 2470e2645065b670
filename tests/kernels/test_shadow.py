"""Recalling chunks whose keys are of low rank: what is chosen, rebuilt, kept, and found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diastole.kernels.shadows import Shadowed, Shadows
from diastole.kernels.table import Ops
from diastole.nn.rope import rope_table
from diastole.types import Array
from kernels.cases import PAGE, REF, bf16, each_isa, native, normal, same_bits

SEALED, RECORDS, BUFFERS, FIRST = 30, 3, 3, 2
PLACES = (np.array([7, 3, 29, 11, 0, 16]), np.array([5, 28, 1, 8]))  # sealed pages of two streams


def state(ops: Ops, groups: int, dim: int, rank: int, chunks: int, outliers: int) -> Shadows:
    """The same random state for any operators, in their form."""
    rng = np.random.default_rng(groups * rank + chunks)
    size = ops.kv_page_bytes("rows", dim)
    pages = FIRST + BUFFERS * -(-chunks // 8)
    values = bf16(normal(rng, SEALED, groups, PAGE * dim))
    if size == 4 * PAGE * dim:  # native pages of rows are bf16, the twin's are float32
        values = bits(values)
    worst = rng.permuted(np.tile(np.arange(32, dtype=np.int32), (RECORDS, groups, 1)), axis=2)[..., :outliers]
    return Shadows(
        marks=bits(bf16(normal(rng, SEALED, groups, 8 * dim))).view(np.uint8).reshape(SEALED, groups, -1),
        a=rng.integers(-32767, 32768, (SEALED, PAGE * rank)).astype(np.int16).view(np.uint8),
        values=values.view(np.uint8).reshape(SEALED, groups, -1),
        basis=normal(rng, RECORDS, rank, groups * dim) / np.float32(32767),
        outliers=np.sort(worst, axis=2),
        rope=rope_table(2048, dim, 10_000.0),
        buf=ops.alloc(pages * groups * size).reshape(pages, groups, size),
        held=np.full((BUFFERS, groups, chunks), -1, np.int32),
        first=FIRST,
    )


def bits(x: Array) -> Array:
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def rows() -> Shadowed:
    tables = np.zeros((2, 6), np.int32)
    for i, own in enumerate(PLACES):
        tables[i, : len(own)] = own
    return Shadowed(
        np.array([1, 4], np.int32),
        tables,
        np.array([6, 4], np.int32),
        np.array([2, 0], np.int32),
        np.array([0, 2], np.int32),
    )


def recall(ops: Ops, s: Shadows, r: Shadowed, q: Array) -> tuple[Array, Array]:
    n, (_, groups, chunks) = len(r.which), s.held.shape
    at, missed = np.full((n, groups, chunks * 8 + 3), 5, np.int64), np.empty((n, groups), np.int32)
    ops.recall(q, s, r, 0.3, at, missed)
    assert (at[..., -3:] == 5).all()
    return at[..., :-3], missed


def read(ops: Ops, s: Shadows, at: Array, dim: int) -> tuple[Array, Array]:
    """What lies where each head attends: keys and values (R, Hkv, K, D)."""
    k, v = (np.empty((at.size, at.shape[1], dim), np.float32) for _ in range(2))
    ops.kv_read(s.buf, "rows", at.reshape(-1), k, v)
    head = np.arange(at.shape[1])[None, :, None]
    places = np.arange(at.size).reshape(at.shape)
    return k[places, head], v[places, head]


@each_isa()
@pytest.mark.parametrize(("heads", "groups", "dim", "rank"), [(9, 3, 64, 48), (4, 2, 32, 20), (4, 4, 96, 7)])
@pytest.mark.parametrize(("chunks", "outliers"), [(16, 4), (11, 0)])
def test_recall(isa: str, heads: int, groups: int, dim: int, rank: int, chunks: int, outliers: int) -> None:
    q = normal(np.random.default_rng(1), 6, heads, dim)
    found = []
    for ops in (native(isa), REF):
        s = state(ops, groups, dim, rank, chunks, outliers)
        at, missed = recall(ops, s, rows(), q)
        assert (missed == chunks).all()
        found.append((s.held[[0, 2]], *read(ops, s, at, dim)))
        for i, g in np.ndindex(2, groups):
            chosen = s.held[[0, 2][i], g]
            assert len(set(chosen)) == chunks
            assert not set(chosen) & set(s.outliers[[2, 0][i], g])
        assert (s.held[1] == -1).all()
        again, none = recall(ops, s, rows(), q)
        assert (none == 0).all()
        np.testing.assert_array_equal(again, at)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    error = np.linalg.norm(found[0][1] - found[1][1]) / np.linalg.norm(found[1][1])
    assert error < 2e-3  # sums in another order, then rounded to bfloat16
    same_bits(found[0][2], found[1][2])


@each_isa()
def test_what_is_kept_changes_no_bit(isa: str) -> None:
    """A row that finds some chunks in its buffer gets the same keys and values, in the same order, as one that finds
    none; and as one that comes alone."""
    ops, rng = native(isa), np.random.default_rng(2)
    kept, fresh = (state(ops, 3, 64, 48, 16, 4) for _ in range(2))
    total = 0
    q = normal(rng, 6, 9, 64)
    for _ in range(5):
        q = q + normal(rng, 6, 9, 64) * np.float32(0.4)
        at, missed = recall(ops, kept, rows(), q)
        total += int(missed.sum())
        fresh.held[:] = -1
        one = Shadowed(*(getattr(rows(), f)[1:] for f in ("which", "tables", "pages", "records", "buffers")))
        alone, _ = recall(ops, fresh, one, q)
        for a, b in zip(read(ops, kept, at[1:], 64), read(ops, fresh, alone, 64), strict=True):
            same_bits(a, b)
    assert 6 * 16 < total < 5 * 6 * 16  # some were found


def test_keys_are_where_they_were() -> None:
    """With all of the rank, the rebuilt keys are the keys."""
    ops, rng = native(), np.random.default_rng(3)
    s = state(ops, 3, 64, 192, 16, 0)
    x = normal(rng, 4 * PAGE, 3, 64)
    basis, _ = np.linalg.qr(rng.standard_normal((192, 192)))
    a = x.reshape(-1, 192) @ basis
    scale = np.abs(a).max(0) / 32767
    s.a[PLACES[1]] = np.rint(a / scale).astype(np.int16).reshape(4, -1).view(np.uint8)
    s.basis[0] = (basis * scale).T
    at, _ = recall(ops, s, rows(), normal(rng, 6, 9, 64))
    ops.rope(x, np.arange(len(x), dtype=np.int32), s.rope)
    k, _ = read(ops, s, at[1:], 64)
    for g in range(3):
        chunks = np.sort(s.held[2, g])
        want = x.reshape(-1, 8, 3, 64)[chunks, :, g].reshape(-1, 64)
        np.testing.assert_allclose(k[0, g], want, atol=2e-2)
        assert np.linalg.norm(k[0, g] - want) < 2e-3 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"buffers": np.array([0, 0], np.int32)}, "buffers"),
        ({"buffers": np.array([0, 3], np.int32)}, "buffers"),
        ({"records": np.array([0, 3], np.int32)}, "records"),
        ({"which": np.array([0, 6], np.int32)}, "which"),
        ({"pages": np.array([6, 7], np.int32)}, "pages"),
        ({"tables": np.full((2, 6), SEALED, np.int32)}, "tables"),
        ({"first": 4}, "first"),
        ({"rope": rope_table(100, 64, 1e4)}, "rope"),
        ({"a": np.zeros((SEALED, 100), np.uint8)}, "a must"),
        ({"held": np.zeros((3, 2, 16), np.int32)}, "held"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], word: str) -> None:
    ops = native()
    s, r = state(ops, 3, 64, 48, 16, 4), rows()
    own = {k: v for k, v in change.items() if hasattr(s, k)}
    rest = {k: v for k, v in change.items() if hasattr(r, k)}
    with pytest.raises(ValueError, match=word):
        recall(ops, replace(s, **own), replace(r, **rest), np.zeros((6, 9, 64), np.float32))
    at, missed = np.zeros((2, 3, 16 * 8), np.int64), np.ones((2, 3), np.int32)
    with pytest.raises(ValueError, match="at"):
        ops.recall(np.zeros((6, 9, 64), np.float32), s, r, 0.1, at, missed)


@each_isa()
def test_what_is_no_number_brings_no_rows_of_others(isa: str) -> None:
    for ops in (native(isa), REF):
        s = state(ops, 3, 64, 48, 16, 4)
        at, missed = recall(ops, s, rows(), np.full((6, 9, 64), np.nan, np.float32))
        assert (at == 5).all()
        assert (missed == 0).all()
