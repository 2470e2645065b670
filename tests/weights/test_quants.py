"""Every stored kind, bit for bit against the ``gguf`` package."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest

from diastole.weights import affine4, dequantize, has_affine4, int8
from diastole.weights.quants import KINDS, quantize8
from weights.make import random_raw

N, K = 6, 512  # of random_raw


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize_equals_the_oracle(kind: str) -> None:
    raw = random_raw(kind)
    want = gguf.dequantize(raw.data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dequantize(raw), want)


@pytest.mark.parametrize("kind", KINDS)
def test_affine4_is_exact_where_it_exists(kind: str) -> None:
    raw = random_raw(kind)
    parts = affine4(raw)
    assert (parts is not None) == has_affine4(kind)
    if parts is not None:
        q, d, m = parts
        assert q.max() <= 15
        again = q.reshape(N, -1, 32) * d[..., None] + m[..., None]
        np.testing.assert_array_equal(again.reshape(N, K), dequantize(raw))


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_within_half_a_step(kind: str) -> None:
    raw = random_raw(kind)
    q, d = int8(raw)
    exact = dequantize(raw).reshape(N, -1, 32)
    error = np.abs(q.reshape(N, -1, 32) * d[..., None] - exact)
    assert (error <= (0 if kind == "Q8_0" else 0.51) * d[..., None] + 1e-4 * np.abs(exact)).all()


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_raw("Q4_1")
    whole = dequantize(raw), affine4(raw), int8(raw)
    monkeypatch.setattr("diastole.weights.quants.SLICE", K)
    np.testing.assert_array_equal(dequantize(raw), whole[0])
    for some, all_ in ((affine4(raw), whole[1]), (int8(raw), whole[2])):
        assert some is not None
        assert all_ is not None
        for a, b in zip(some, all_, strict=True):
            np.testing.assert_array_equal(a, b)


def test_int8_survives_what_float16_cannot_hold() -> None:
    for size in (1e38, 1e-30, 0.0):
        w = np.full((1, 32), size, np.float32)
        q, d = quantize8(w)
        assert np.isfinite(d).all()
        assert (q == (127 if size == 1e38 else 0)).all()


def test_peak_memory_is_the_result_and_a_few_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.weights.quants.SLICE", 1 << 16)
    raw = random_raw("Q4_1", 4096, 576)
    for convert in (dequantize, affine4, int8):
        tracemalloc.start()
        result = convert(raw)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = result.nbytes if isinstance(result, np.ndarray) else sum(part.nbytes for part in result or ())
        assert peak < size + (1 << 16) * 32
