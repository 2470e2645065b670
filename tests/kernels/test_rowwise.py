"""rmsnorm, rope, gated and groupnorm against float64."""

import numpy as np
import pytest

from kernels.cases import REF, each_isa, native, normal


@each_isa()
@pytest.mark.parametrize("k", [1, 15, 16, 64, 100, 576])
def test_rmsnorm(isa: str, k: int) -> None:
    ops, rng = native(isa), np.random.default_rng(0)
    x, weight = normal(rng, 5, k), normal(rng, k)
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
    y, z = np.empty_like(x), np.empty_like(x)
    ops.rmsnorm(x, weight, 1e-5, y)
    REF.rmsnorm(x, weight, 1e-5, z)
    np.testing.assert_allclose(y, exact, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(y, z, rtol=5e-6, atol=1e-7)
    ops.rmsnorm(x, weight, 1e-5, x)
    np.testing.assert_array_equal(x, y)


@each_isa()
def test_rmsnorm_of_heads_in_place_inside_a_merged_buffer(isa: str) -> None:
    ops, rng = native(isa), np.random.default_rng(1)
    qkv, weight = normal(rng, 7, 12, 32), normal(rng, 32)
    before, heads = qkv.copy(), qkv[:, :9]
    ops.rmsnorm(heads, weight, 1e-6, heads)
    exact = before[:, :9] / np.sqrt((before[:, :9].astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(heads, exact, rtol=3e-6)
    np.testing.assert_array_equal(qkv[:, 9:], before[:, 9:])


def table(positions: int, rotated: int) -> np.ndarray:
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(rotated // 2) * 2 / max(rotated, 1))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@each_isa()
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (64, 32), (80, 20), (16, 2), (256, 256), (32, 0)])
def test_rope(isa: str, dim: int, rotated: int) -> None:
    ops, rng = native(isa), np.random.default_rng(2)
    wide, angles = normal(rng, 6, 5, dim), table(50, rotated)
    x, before = wide[:, :4], wide.copy()
    pos = np.array([0, 49, 3, 3, 20, 1], np.int32)
    ops.rope(x, pos, angles)
    half = rotated // 2
    c, s = angles[pos][:, None, :half], angles[pos][:, None, half:]
    a, b = before[:, :4, :half].astype(np.float64), before[:, :4, half:rotated].astype(np.float64)
    np.testing.assert_allclose(x[..., :half], a * c - b * s, atol=1e-6)
    np.testing.assert_allclose(x[..., half:rotated], b * c + a * s, atol=1e-6)
    np.testing.assert_array_equal(x[..., rotated:], before[:, :4, rotated:])
    np.testing.assert_array_equal(wide[:, 4:], before[:, 4:])
    twin = before[:, :4].copy()
    REF.rope(twin, pos, angles)
    np.testing.assert_allclose(x, twin, atol=1e-6)


@each_isa()
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("f", [1, 16, 37, 1536])
def test_gated(isa: str, kind: str, f: int) -> None:
    ops, rng = native(isa), np.random.default_rng(3)
    wide = normal(rng, 9, 2 * f + 3) * np.float32(4)
    gu = wide[:, 1 : 1 + 2 * f]
    y, z = np.empty((9, f), np.float32), np.empty((9, f), np.float32)
    ops.gated(gu, kind, y)
    REF.gated(gu, kind, z)
    gate, up = gu[:, :f].astype(np.float64), gu[:, f:].astype(np.float64)
    act = gate / (1 + np.exp(-gate))
    if kind == "gelu_tanh":
        act = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(y, act * up, rtol=4e-6, atol=1e-6)
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=2e-6)


@each_isa()
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gates_at_the_ends(isa: str, kind: str) -> None:
    """Large gates neither overflow nor vanish, and NaN stays NaN."""
    ops = native(isa)
    gate = np.array([0, -0.0, 1e-30, 80, -80, 200, -200, 1e30, -1e30, np.inf, np.nan], np.float32)
    y = np.empty((1, len(gate)), np.float32)
    ops.gated(np.concatenate([gate, np.ones_like(gate)])[None], kind, y)
    assert (y[0, :2] == 0).all()
    np.testing.assert_array_equal(y[0, [3, 5, 7, 9]], gate[[3, 5, 7, 9]])
    assert (np.abs(y[0, [4, 6, 8]]) < 1e-30).all()
    assert np.isnan(y[0, 10])
    assert not np.isnan(y[0, :10]).any()


@each_isa()
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("b", "h", "w", "c", "groups"),
    [(3, 4, 6, 12, 4), (1, 1, 1, 16, 1), (2, 40, 33, 56, 8), (2, 3, 5, 32, 32), (1, 2, 2, 1, 1)],
)
def test_groupnorm(isa: str, b: int, h: int, w: int, c: int, groups: int, silu: bool) -> None:
    """Into the middle of a wider array, of one that is itself a part, alone and in a crowd."""
    ops, rng = native(isa), np.random.default_rng(4)
    wide = normal(rng, b, h + 1, w + 2, c) * np.float32(3) + np.float32(5)
    x, weights, add = wide[:, 1:, 1:-1], normal(rng, 2, c), normal(rng, b, c)
    out = np.full((b, h + 2, w + 1, c), 7, np.float32)
    got, twin = out[:, 1:-1, 1:], np.empty(x.shape, np.float32)
    ops.groupnorm(x, weights, groups, 1e-5, got, add, silu)
    REF.groupnorm(x, weights, groups, 1e-5, twin, add, silu)
    v = (x.astype(np.float64) + add[:, None, None]).reshape(b, h * w, groups, -1)
    exact = (v - v.mean((1, 3), keepdims=True)) / np.sqrt(v.var((1, 3), keepdims=True) + 1e-5)
    exact = exact.reshape(x.shape) * weights[0] + weights[1]
    exact = exact / (1 + np.exp(-exact)) if silu else exact
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, twin, rtol=1e-4, atol=1e-4)
    assert (out[:, 0] == 7).all()
    assert (out[:, -1] == 7).all()
    assert (out[:, :, 0] == 7).all()
    for i in range(b):
        alone = np.empty((1, h, w, c), np.float32)
        ops.groupnorm(x[i : i + 1], weights, groups, 1e-5, alone, add[i : i + 1], silu)
        np.testing.assert_array_equal(alone[0], got[i])
    ops.groupnorm(x, weights, groups, 1e-5, x, add, silu)  # in place
    np.testing.assert_array_equal(x, got)


def test_groupnorm_of_nothing_and_of_something_that_is_no_number() -> None:
    ops, weights = native(), np.ones((2, 4), np.float32)
    nothing = np.empty((0, 2, 2, 4), np.float32)
    ops.groupnorm(nothing, weights, 2, 1e-5, nothing, None, True)
    x = np.zeros((2, 2, 2, 4), np.float32)
    x[0, 0, 0, 0] = np.nan
    y = np.empty_like(x)
    ops.groupnorm(x, weights, 2, 1e-5, y, None, False)
    assert np.isnan(y[0, ..., :2]).all()
    np.testing.assert_array_equal(y[0, ..., 2:], 1)
    np.testing.assert_array_equal(y[1], 1)
