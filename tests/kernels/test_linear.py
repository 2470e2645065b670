"""linear, embed and packing: native against the plain twin and against float64."""

import numpy as np
import pytest

from diastole.kernels.ref import TorchOps
from diastole.kernels.table import Packed, compiled
from kernels.cases import FORMATS, bf16, each_isa, native, normal, weights

SHAPES = ((1, 32), (16, 32), (17, 64), (33, 96), (100, 256), (576, 576))  # n, k


def rounded(x: np.ndarray, fmt: str, rounding: str) -> np.ndarray:
    """Activations as a format's kernels see them, in float64."""
    if fmt == "f32":
        return x.astype(np.float64)
    if fmt == "bf16":
        return bf16(x).astype(np.float64)
    if rounding == "bf16/32":
        groups = bf16(x).astype(np.float64).reshape(len(x), -1, 32)
        most = np.abs(groups).max(-1, keepdims=True)
        unit = 2.0 ** (np.floor(np.log2(np.where(most > 0, most, 1))) - 11)
        return (np.rint(groups / unit) * unit).reshape(x.shape)
    groups = x.reshape(len(x), -1, 16)
    most = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    q = np.rint(groups * inverse).astype(np.float64)
    return (q * (most / np.float32(127))).reshape(x.shape)


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_linear_is_the_twin_s(isa: str, fmt: str, n: int, k: int) -> None:
    ops, w = native(isa), weights(fmt, n, k)
    twin = TorchOps(rounding=ops.rounding)
    fast, slow = w.pack(ops), w.pack(twin)
    rng = np.random.default_rng(1)
    for t in (1, 2, 3, 5, 8, 33):
        x = normal(rng, t, k)
        y, z = np.empty((t, n), np.float32), np.empty((t, n), np.float32)
        ops.linear(x, fast, y)
        twin.linear(x, slow, z)
        exact = rounded(x, fmt, ops.rounding) @ w.dense.astype(np.float64).T
        terms = np.abs(rounded(x, fmt, ops.rounding)) @ np.abs(w.dense.astype(np.float64)).T + 1e-9
        assert (np.abs(y - exact) / terms).max() < 3e-6
        assert (np.abs(y - z) / terms).max() < 5e-6


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_rounding_activations_costs_little(isa: str, fmt: str) -> None:
    """Against the dequantised weights in float64: the relative error of the whole result."""
    ops, w = native(isa), weights(fmt, 200, 512)
    x = normal(np.random.default_rng(2), 16, 512)
    y = np.empty((16, 200), np.float32)
    ops.linear(x, w.pack(ops), y)
    exact = x.astype(np.float64) @ w.dense.astype(np.float64).T
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w.dense, axis=1)
    assert np.sqrt(np.mean(((y - exact) / size) ** 2)) < (1e-6 if fmt == "f32" else 4e-3)


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_views_bias_and_accumulation(isa: str, fmt: str) -> None:
    ops, n, k, t = native(isa), 40, 64, 6
    w = weights(fmt, n, k).pack(ops)
    rng = np.random.default_rng(3)
    wide_x, bias, start = normal(rng, t, k + 30), normal(rng, n), normal(rng, t, n)
    x = wide_x[:, 7 : 7 + k]
    plain = np.empty((t, n), np.float32)
    ops.linear(np.ascontiguousarray(x), w, plain)
    wide = np.full((t, n + 50), 5, np.float32)
    out = wide[:, 3 : 3 + n]
    ops.linear(x, w, out, bias)
    np.testing.assert_array_equal(out, plain + bias)
    out[...] = start
    ops.linear(x, w, out, bias, accumulate=True)
    np.testing.assert_array_equal(out, start + (plain + bias))
    assert (wide[:, :3] == 5).all()
    assert (wide[:, 3 + n :] == 5).all()
    backwards = np.empty((t, n), np.float32)
    ops.linear(x[::-1], w, backwards)
    np.testing.assert_array_equal(backwards[::-1], plain)


@each_isa()
def test_columns_of_no_round_number(isa: str) -> None:
    """f32 takes any k, bf16 any even one."""
    for fmt, k in (("f32", 37), ("bf16", 38), ("bf16", 2)):
        ops, x, w = native(isa), normal(np.random.default_rng(4), 5, k), weights(fmt, 19, k)
        y = np.empty((5, 19), np.float32)
        ops.linear(x, w.pack(ops), y)
        np.testing.assert_allclose(y, rounded(x, fmt, ops.rounding) @ w.dense.T.astype(np.float64), atol=1e-4)


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_no_rows(isa: str, fmt: str) -> None:
    ops = native(isa)
    w = weights(fmt, 16, 32).pack(ops)
    ops.linear(np.empty((0, 32), np.float32), w, np.empty((0, 16), np.float32))
    ops.embed(w, np.empty(0, np.int32), np.empty((0, 32), np.float32))


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_zeros_and_what_is_no_number(isa: str, fmt: str) -> None:
    ops = native(isa)
    w = weights(fmt, 48, 64).pack(ops)
    x = normal(np.random.default_rng(5), 4, 64)
    clean, y = np.empty((4, 48), np.float32), np.empty((4, 48), np.float32)
    ops.linear(x, w, clean)
    x[0], x[1, 40], x[2, 3] = 0, np.nan, np.inf
    ops.linear(x, w, y)
    assert (y[0] == 0).all()
    assert np.isnan(y[1]).all()  # shown, not rounded away
    assert not np.isfinite(y[2]).any()
    np.testing.assert_array_equal(y[3], clean[3])


@each_isa()
@pytest.mark.parametrize("fmt", FORMATS)
def test_embed_gives_the_rows(isa: str, fmt: str) -> None:
    ops, w = native(isa), weights(fmt, 50, 96)
    ids = np.array([0, 49, 17, 17, 31], np.int32)
    wide = np.full((5, 200), 5, np.float32)
    ops.embed(w.pack(ops), ids, wide[:, 2:98])
    np.testing.assert_allclose(wide[:, 2:98], w.dense[ids], rtol=1e-6, atol=1e-7)
    assert (wide[:, 98:] == 5).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_bytes_are_the_same_for_all_and_survive_storage(fmt: str) -> None:
    """Packing does not depend on threads, and read-only bytes from anywhere multiply as well."""
    w = weights(fmt, 53, 64)
    one, two = w.pack(native(threads=1)), w.pack(native(threads=2))
    assert one.data.tobytes() == two.data.tobytes()
    assert one.nbytes == one.data.nbytes
    stored = Packed(one.fmt, one.n, one.k, np.frombuffer(one.data.tobytes(), np.uint8))
    x = normal(np.random.default_rng(6), 3, 64)
    y, z = np.empty((3, 53), np.float32), np.empty((3, 53), np.float32)
    native().linear(x, one, y)
    native().linear(x, stored, z)
    np.testing.assert_array_equal(y, z)


def test_scales_round_to_half_precision_like_numpy() -> None:
    ops = native()
    values = np.concatenate(
        [np.geomspace(1e-9, 65000, 400), -np.geomspace(1e-9, 65000, 400), [0.0, 2.0**-24, 2.0**-25, 6.0e-5, 65503.9]]
    ).astype(np.float32)
    d = np.tile(values[:, None], (1, 1))
    out = np.empty((len(values), 32), np.float32)
    w = ops.pack_q8(np.ones((len(values), 32), np.int8), d)
    ops.embed(w, np.arange(len(values), dtype=np.int32), out)
    np.testing.assert_array_equal(out[:, 0], values.astype(np.float16).astype(np.float32))


@each_isa()
def test_one_factor_does_what_two_do(isa: str) -> None:
    """Where m = -8 d, it is left out: the same products from nine tenths of the bytes."""
    ops, (q, d, m) = native(isa), weights("q4s", 100, 256).parts
    short, long = ops.pack_q4(q, d, m), Packed("q4", 100, 256, compiled().pack_q4("q4", q, d, m))
    assert (short.fmt, short.nbytes / long.nbytes) == ("q4s", 0.9)
    x = normal(np.random.default_rng(6), 9, 256)
    one, two = np.empty((9, 100), np.float32), np.empty((9, 100), np.float32)
    ops.linear(x, short, one)
    ops.linear(x, long, two)
    np.testing.assert_allclose(one, two, rtol=0, atol=3e-6 * np.abs(two).max())


def test_a_factor_that_is_not_minus_eight_times_the_other_is_kept() -> None:
    ops, (q, d, m) = native(), weights("q4s", 20, 64).parts
    m[7, 1] *= 1.01
    assert ops.pack_q4(q, d, m).fmt == "q4"
