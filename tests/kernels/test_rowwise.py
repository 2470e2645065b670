"""rmsnorm, rope and gated against float64."""

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
