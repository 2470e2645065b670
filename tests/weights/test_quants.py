"""Every stored kind, bit for bit against the ``gguf`` package."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest

from diastole.kernels.ref import TorchOps
from diastole.kernels.table import load
from diastole.nn.linear import pack
from diastole.types import Array
from diastole.weights import affine4, byte_factors, dequantize, has_affine4, int8
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


def by_bytes(q: Array, d: Array, m: Array) -> Array:
    """The weights that bytes make of them, as the plain operators have them."""
    ops, out = TorchOps(), np.empty(q.shape, np.float32)
    ops.embed(ops.pack_q4b(*byte_factors(q, d, m)), np.arange(len(q), dtype=np.int32), out)
    return out


def test_factors_in_bytes_are_near() -> None:
    """A row's weights are off by less than a step of the larger factor: 7.5/255 and 4/255 of the largest, halved."""
    r = np.random.default_rng(0)
    q = r.integers(0, 16, (64, 512)).astype(np.uint8)
    d = r.uniform(0.3, 1, (64, 16)).astype(np.float32) * r.uniform(1e-3, 10, (64, 1)).astype(np.float32)
    for turned in (1, r.choice([-1, 1], d.shape)):
        own = (d * turned).astype(np.float32)
        m = (-own * r.uniform(6, 9, d.shape)).astype(np.float32)
        wide, low = (x.repeat(32, axis=1) for x in (own, m))
        want = wide * q + low
        off = by_bytes(q, own, m) - want
        assert (np.abs(off).max(1) < 1.05 * (7.5 + 4) / 2 / 255 * d.max(1)).all()
        assert np.sqrt((off**2).mean() / (want**2).mean()) < 0.004


def test_factors_in_bytes_of_odd_groups() -> None:
    """Groups of one value, far from zero, without a factor, and nothing at all."""
    q = np.random.default_rng(1).integers(0, 16, (4, 64)).astype(np.uint8)
    d = np.array([[0, 0], [1e-3, 2e-3], [0, 1], [0, 0]], np.float32)
    m = np.array([[2.5, -2.5], [100, 100], [3, -7.5], [0, 0]], np.float32)
    want = d.repeat(32, axis=1) * q + m.repeat(32, axis=1)
    off = np.abs(by_bytes(q, d, m) - want).max(1)
    assert (off <= 0.01 * np.abs(want).max(1)).all()
    assert off[3] == 0


def test_compact_keeps_the_format_that_takes_the_fewest_bytes() -> None:
    ops = load()
    want = {"Q4_1": "q4b", "Q4_K": "q4b", "Q4_0": "q4s", "Q8_0": "q8", "Q6_K": "q8", "F32": "bf16"}
    for kind, fmt in want.items():
        raw = random_raw(kind)
        (packed,), (plain,) = pack(ops, [raw], "compact"), pack(ops, [raw], "auto")
        assert packed.fmt == fmt or not ops.layout  # where there are native ones
        assert packed.nbytes <= plain.nbytes
