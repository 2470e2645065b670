"""The synthetic geometry: its attention is the textbook's, its bytes are counted, and it does not outgrow its bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diastole.bench.geometry import SMOLLM2, WIDE, Synthetic
from diastole.bench.sparse import measure
from diastole.kernels.table import load
from diastole.state.kv import PagedKV
from diastole.types import UserError


def test_attention_equals_the_textbooks() -> None:
    field = Synthetic(replace(SMOLLM2, layers=2), PagedKV("f32"), load(), lengths=(5, 300, 1025))
    q = field.queries()
    for layer in range(2):
        out = field.attend(layer, q)
        for b, n in enumerate(field.lengths):
            rows = field.pool.rows(field.tables, np.full(n, b), np.arange(n, dtype=np.int32))
            k, v = (np.repeat(x, 3, axis=1) for x in field.store.read(layer, rows))
            scores = np.einsum("hd,nhd->hn", q[b], k) / 8
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(out[b], np.einsum("hn,nhd->hd", weights, v), atol=2e-5)


def test_long_context_fits_and_bytes_are_said() -> None:
    field = Synthetic(replace(SMOLLM2, layers=1), PagedKV("bf16"), load(), lengths=(131_072,))
    assert field.name.startswith("synthetic")
    assert field.bytes == 131_072 * 3 * 64 * 2 * 2  # tokens, heads, numbers, key and value, bf16
    assert field.bytes == sum(b.nbytes for b in field.store.buffers or ())
    assert np.isfinite(field.attend(0, field.queries())).all()


def test_same_seed_same_numbers() -> None:
    one, other = (Synthetic(replace(WIDE, layers=1), PagedKV("bf16"), load(), lengths=(70,), seed=3) for _ in range(2))
    assert (one.attend(0, one.queries()) == other.attend(0, other.queries())).all()


@pytest.mark.parametrize("lengths", [(), (0,), (2**40,)])
def test_lengths_out_of_range_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="between 1 and"):
        Synthetic(SMOLLM2, PagedKV("bf16"), load(), lengths)


def test_more_bytes_than_allowed_are_refused_before_they_are_taken() -> None:
    with pytest.raises(UserError, match="fewer layers"):
        Synthetic(SMOLLM2, PagedKV("bf16"), load(), lengths=(131_072,))


def test_a_step_of_sparse_attention_reads_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed by nobody here: the stacks run, and the one that attends to everything agrees with dense attention."""
    ops = load(1)
    if ops.name == "torch":
        pytest.skip("the native operators are not built")
    told: list[str] = []
    uses = (("sink-window:budget=64,dense_below=1",), ("exact-topk:budget=4096,dense_below=1",))
    found = list(measure(uses, 1500, ops, 1, told.append))
    assert [f.use for f in found] == [(), *uses]
    assert all(len(f.rounds) == 1 and f.seconds > 0 for f in found)
    assert found[0].bytes_per_token == found[1].bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert told


@pytest.mark.parametrize("use", ["zipcache", "lserve:pool=bf16"])
def test_what_changes_rows_as_a_stream_goes_on_is_refused_by_name(use: str) -> None:
    with pytest.raises(UserError, match=f"{use.partition(':')[0]} changes rows as a stream goes on"):
        next(iter(measure([(use,)], 2048, load(1), 1, lambda _: None)))
