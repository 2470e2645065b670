"""Every stored kind, bit for bit against the ``gguf`` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from diastole.weights import Raw, affine4, dequantize, has_affine4, int8
from diastole.weights.quants import KINDS

N, K = 6, 512
_HALVES = {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}  # where a block holds float16 numbers


def random_raw(kind: str) -> Raw:
    """Random bytes that are valid blocks: any bits, but finite scales."""
    rng = np.random.default_rng(7)
    block = KINDS[kind]
    if block.weights == 1:
        w = rng.normal(size=(N, K)).astype(np.float32)
        data = gguf.quantize(w, gguf.GGMLQuantizationType[kind]).view(np.uint8)
        return Raw("x", kind, (N, K), data.reshape(N, -1))
    blocks = rng.integers(0, 256, (N * K // block.weights, block.nbytes)).astype(np.uint8)
    for at in _HALVES.get(kind, (0, 2)):
        blocks[:, at : at + 2] = rng.normal(size=(len(blocks), 1)).astype(np.float16).view(np.uint8)
    return Raw("x", kind, (N, K), blocks.reshape(N, -1))


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
