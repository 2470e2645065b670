"""A row's result is the same to the last bit whatever shares its batch, wherever it stands, on any threads."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import FORMATS, ISAS, KV_FORMATS, Cache, each_isa, native, normal, same_bits, weights

QUICK = settings(max_examples=30, deadline=None, derandomize=True, database=None)
isas = st.sampled_from(ISAS or ("native",))


@pytest.fixture(autouse=True)
def two_threads_afterwards() -> Iterator[None]:
    yield
    if ISAS:
        native(threads=2)


@given(st.data())
@QUICK
def test_linear(data: st.DataObject) -> None:
    isa, fmt = data.draw(isas), data.draw(st.sampled_from(FORMATS))
    n, k = data.draw(st.sampled_from([(200, 128), (17, 32), (112, 576)]))
    t = data.draw(st.integers(1, 80))
    w = weights(fmt, n, k).pack(native(isa))
    x, bias = normal(np.random.default_rng(t), t, k), normal(np.random.default_rng(0), n)
    single = np.empty((t, n), np.float32)
    for i in range(t):
        native(isa, 1).linear(x[i : i + 1], w, single[i : i + 1], bias)
    for threads in (1, 2):
        order = np.array(data.draw(st.permutations(range(t))))[: data.draw(st.integers(1, t))]
        y = np.empty((len(order), n), np.float32)
        native(isa, threads).linear(x[order], w, y, bias)
        same_bits(y, single[order])


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_many_rows(isa: str, fmt: str) -> None:
    """Enough rows and columns that both are cut into pieces."""
    w, x = weights(fmt, 80, 1024).pack(native(isa)), normal(np.random.default_rng(0), 301, 1024)
    one, two, some = (np.empty((t, 80), np.float32) for t in (301, 301, 9))
    native(isa, 1).linear(x, w, one)
    native(isa, 3).linear(x, w, two)
    native(isa, 2).linear(x[290:299], w, some)
    same_bits(one, two)
    same_bits(some, one[290:299])


@pytest.fixture(scope="module")
def caches() -> dict[tuple[str, str], Cache]:
    return {(isa, fmt): Cache(native(isa), fmt, [1300, 200, 40], 2, 32) for isa in ISAS for fmt in KV_FORMATS}


@given(data=st.data())
@QUICK
def test_attend(caches: dict[tuple[str, str], Cache], data: st.DataObject) -> None:
    isa, fmt = data.draw(isas), data.draw(st.sampled_from(KV_FORMATS))
    native(isa)  # skips where there is none
    cache = caches[isa, fmt]
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1300), st.integers(0, 1300)), min_size=1, max_size=60)
    )
    rows.sort(key=lambda row: row[0])
    streams = np.array([row[0] for row in rows])
    room = np.array(cache.lengths)[streams]
    lo = np.minimum([row[1] for row in rows], room)
    hi = np.minimum([row[2] for row in rows], room)
    q = normal(np.random.default_rng(len(rows)), len(rows), 6, 32)
    native(isa, 1)
    alone = [cache.attend(q[i : i + 1], streams[i : i + 1], lo[i : i + 1], hi[i : i + 1]) for i in range(len(rows))]
    single, single_lse = (np.concatenate(parts) for parts in zip(*alone, strict=True))
    for threads in (1, 2):
        native(isa, threads)
        kept = np.sort(data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))])
        out, lse = cache.attend(q[kept], streams[kept], lo[kept], hi[kept])
        same_bits(out, single[kept])
        same_bits(lse, single_lse[kept])


@each_isa()
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_decoding_is_prefilling(isa: str, fmt: str) -> None:
    """Tokens written and attended one by one, in chunks, or all at once: later tokens on the page change nothing."""
    n = 580
    q = normal(np.random.default_rng(1), n, 3, 16)
    results = []
    for chunk in (1, 7, 64, n):
        cache = Cache(native(isa), fmt, [n], 1, 16)
        cache.buf[...] = 0
        parts = []
        for first in range(0, n, chunk):
            last = min(first + chunk, n)
            cache.write(0, first, last)
            at = np.arange(first, last)
            parts.append(cache.attend(q[first:last], np.zeros(len(at), int), np.zeros(len(at), int), at + 1)[0])
        results.append(np.concatenate(parts))
    for result in results[1:]:
        same_bits(result, results[0])


@each_isa()
def test_where_pages_lie_does_not_matter(isa: str) -> None:
    q, zeros, hi = normal(np.random.default_rng(2), 4, 2, 16), np.zeros(4, int), np.full(4, 700)
    caches = [Cache(native(isa), "bf16", [700], 1, 16, seed=0) for _ in range(2)]
    caches[1].tables = caches[1].tables[:, ::-1].copy()
    caches[1].write(0, 0, 700)
    same_bits(caches[0].attend(q, zeros, zeros, hi)[0], caches[1].attend(q, zeros, zeros, hi)[0])


@each_isa()
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_rowwise(isa: str, kind: str) -> None:
    x = normal(np.random.default_rng(3), 700, 200)
    weight, pos = normal(np.random.default_rng(4), 200), np.arange(700, dtype=np.int32) % 20
    table = normal(np.random.default_rng(5), 20, 40)
    results = []
    for threads in (1, 2):
        ops, normed, gated, turned = native(isa, threads), np.empty_like(x), np.empty((700, 100), np.float32), x.copy()
        ops.rmsnorm(x, weight, 1e-5, normed)
        ops.gated(x, kind, gated)
        ops.rope(turned.reshape(700, 4, 50), pos, table)
        results.append((normed, gated, turned))
    for one, two in zip(*results, strict=True):
        same_bits(one, two)
    alone = np.empty((1, 100), np.float32)
    ops.gated(x[13:14], kind, alone)
    same_bits(alone, results[0][1][13:14])
