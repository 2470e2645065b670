"""A row's result has the same bits whatever else is in the call, however it is cut, on any number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.kernels.table import Ops, load
from diastole.types import Array
from kernels.test_parity import FORMATS, Cache, matrix, normal

native = pytest.importorskip("diastole.kernels._native", reason="the native operators are not built")


@pytest.fixture(params=native.isas(), scope="module")
def ops(request: pytest.FixtureRequest) -> Iterator[Ops]:
    yield load(2, request.param)
    native.set_isa(native.isas()[0])
    native.set_threads(2)


def product(ops: Ops, fmt: str, x: Array, n: int = 200) -> Array:
    out = np.empty((len(x), n), np.float32)
    ops.linear(x, matrix(ops, fmt, n, x.shape[1]), out)
    return out


@pytest.mark.parametrize("fmt", FORMATS)
def test_linear_rows(ops: Ops, fmt: str) -> None:
    x = normal(150, 576)
    whole = product(ops, fmt, x)
    for lo, hi in ((0, 1), (7, 9), (20, 23), (33, 37), (50, 62), (100, 150)):
        np.testing.assert_array_equal(product(ops, fmt, x[lo:hi]), whole[lo:hi])
    order = np.random.default_rng(1).permutation(150)
    np.testing.assert_array_equal(product(ops, fmt, x[order]), whole[order])
    native.set_threads(1)
    np.testing.assert_array_equal(product(ops, fmt, x), whole)
    native.set_threads(3)
    np.testing.assert_array_equal(product(ops, fmt, x), whole)
    native.set_threads(2)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8"])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_attention_rows(ops: Ops, fmt: str, data: st.DataObject) -> None:
    """Rows of two streams, cut into any chunks, alone or together."""
    cache = Cache(ops, fmt, 64, 3, 1100)
    q = normal(60, 9, 64, seed=2)
    hi = np.concatenate([np.arange(1030, 1060), np.arange(500, 530)]).astype(np.int32)
    lo = np.where(np.arange(60) % 3 == 0, np.maximum(hi - 300, 0), 0).astype(np.int32)
    whole, lse = cache.attend(q, np.array([0, 30, 60], np.int32), lo, hi)
    cut = sorted(data.draw(st.sets(st.integers(1, 29), max_size=4)))
    native.set_threads(data.draw(st.integers(1, 3)))
    for a, b in zip([0, *cut], [*cut, 30], strict=True):
        one, one_lse = cache.attend(q[a:b], np.array([0, b - a, b - a], np.int32), lo[a:b], hi[a:b])
        np.testing.assert_array_equal(one, whole[a:b])
        np.testing.assert_array_equal(one_lse, lse[a:b])
    native.set_threads(2)


@pytest.mark.parametrize(("group", "dim"), [(1, 32), (2, 64), (3, 64), (5, 96), (7, 128)])
@pytest.mark.parametrize("fmt", ["bf16", "rows", "rows8"])
def test_few_attention_rows(ops: Ops, fmt: str, group: int, dim: int) -> None:
    """One row, two, three and so on beside twenty: scores so far apart that many weights are next to nothing."""
    cache = Cache(ops, fmt, dim, 2, 700)
    q = 40 * normal(20, 2 * group, dim, seed=3)
    hi = np.arange(681, 701, dtype=np.int32)
    lo = np.where(np.arange(20) % 4 == 0, 37, 0).astype(np.int32)
    whole, lse = cache.attend(q, np.array([0, 20, 20], np.int32), lo, hi)
    for n in range(1, 9):
        few, few_lse = cache.attend(q[:n], np.array([0, n, n], np.int32), lo[:n], hi[:n])
        np.testing.assert_array_equal(few, whole[:n])
        np.testing.assert_array_equal(few_lse, lse[:n])


def test_calls_from_many_threads(ops: Ops) -> None:
    x = normal(40, 576)
    want = product(ops, "q4", x)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(product(ops, "q4", x[i:]), want[i:]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_forked_child_has_its_own_pool() -> None:
    ops = load(2)
    x = normal(64, 576)
    want = product(ops, "q4", x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(product(ops, "q4", x), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(product(ops, "q4", x), want)
