"""The second opinion on arrivals: its net beside one written out in numpy, and where it finds a known wave."""

import numpy as np
import pytest

from diastole.reproduce import gpd

h5py = pytest.importorskip("h5py")

CHANNELS = (3, 32, 64, 128, 256)
WIDTHS = (21, 15, 11, 9)


def small_weights(rng):
    """Random weights of the published shapes."""
    w = {}
    for i, width in enumerate(WIDTHS):
        into, out = CHANNELS[i], CHANNELS[i + 1]
        w[f"conv1d_{i + 1}.kernel"] = rng.normal(0, (width * into) ** -0.5, (width, into, out))
        w[f"conv1d_{i + 1}.bias"] = rng.normal(0, 0.1, out)
    for i, (into, out) in enumerate(((6400, 200), (200, 200), (200, 3))):
        w[f"dense_{i + 1}.kernel"] = rng.normal(0, into**-0.5, (into, out))
        w[f"dense_{i + 1}.bias"] = rng.normal(0, 0.1, out)
    for i, n in enumerate((*CHANNELS[1:], 200, 200), 1):
        w[f"batch_normalization_{i}.gamma"] = rng.uniform(0.5, 1.5, n)
        w[f"batch_normalization_{i}.beta"] = rng.normal(0, 0.1, n)
        w[f"batch_normalization_{i}.moving_mean"] = rng.normal(0, 0.1, n)
        w[f"batch_normalization_{i}.moving_variance"] = rng.uniform(0.5, 1.5, n)
    return {name: value.astype(np.float32) for name, value in w.items()}


def slow(w, x):
    """Shares of P, S and noise of one window; x (400, 3)."""

    def normed(y, i):
        mean, var, scale, shift = (
            w[f"batch_normalization_{i}.{k}"] for k in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return np.maximum((y - mean) / np.sqrt(var + 1e-3) * scale + shift, 0)

    for i, width in enumerate(WIDTHS, 1):
        padded = np.pad(x, ((width // 2, width // 2), (0, 0)))
        kernel = w[f"conv1d_{i}.kernel"]
        y = np.stack([np.einsum("ki,kio->o", padded[t : t + width], kernel) for t in range(len(x))])
        y = normed(y + w[f"conv1d_{i}.bias"], i)
        x = y[: len(y) // 2 * 2].reshape(-1, 2, y.shape[1]).max(1)
    x = x.reshape(-1)
    for i in (1, 2):
        x = normed(x @ w[f"dense_{i}.kernel"] + w[f"dense_{i}.bias"], i + 4)
    y = np.exp(x @ w["dense_3.kernel"] + w["dense_3.bias"])
    return y / y.sum()


def test_the_net_is_the_written_out_one():
    rng = np.random.default_rng(0)
    import torch

    w = small_weights(rng)
    x = rng.normal(size=(3, gpd.SPAN, 3)).astype(np.float32)
    fast = gpd.GPD(w).judged(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))).numpy()
    np.testing.assert_allclose(fast, [slow(w, one) for one in x], atol=1e-4)


def test_a_keras_file_is_read_by_the_names_of_its_layers(tmp_path):
    rng = np.random.default_rng(0)
    w = small_weights(rng)
    with h5py.File(tmp_path / "net.hdf5", "w") as file:
        for name, value in w.items():
            layer, _, kind = name.partition(".")
            file[f"model_weights/sequential_1/sequential_1/{layer}_1/{kind}:0"] = value
    found = gpd.read(tmp_path / "net.hdf5")
    assert found.keys() == w.keys()
    assert all(np.array_equal(found[name], w[name]) for name in w)


class Loudest(gpd.GPD):
    """Takes P for where the vertical swings most in the middle, S for where the north does."""

    def __init__(self):
        super().__init__({})

    def judged(self, x):
        return x[:, [2, 0, 1], x.shape[2] // 2].abs()


def test_arrivals_are_told_at_the_middle_of_their_windows():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1e-3, (1500, 3))
    swing = np.sin(2 * np.pi * 8 * np.arange(40) / gpd.RATE)
    x[600:640, 2] += swing
    x[900:940, 1] += swing
    found = Loudest().arrivals(x)
    assert 5.95 < found["P"] < 6.5
    assert 8.95 < found["S"] < 9.5
