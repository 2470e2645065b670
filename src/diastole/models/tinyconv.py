"""TinyConv: a causal depthwise convolution over live frames, the smallest honest model of the frames kind.

It smooths each feature with a fixed low-pass filter and its only state is the filter's tail, so streamed output equals
the offline convolution for every split of the input. It keeps the engine from becoming token-shaped and serves as the
live neighbour in scheduling tests; its taps are computed (a Hann window), not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diastole.live import Reading, Signal
from diastole.state.cells import CellPool
from diastole.types import Array, Batch, CellSpec, UserError


class TinyConv:
    """y[t, f] = sum_k taps[k] x[t - K + 1 + k, f], with zeros before the first frame.

    Args:
        features: F, numbers per frame.
        rate: frames per second.
        chunk: frames that it runs at once.
        width: K, taps.
    """

    caps: frozenset[str] = frozenset({"cells"})

    def __init__(self, features: int, rate: float, chunk: int = 1, width: int = 5) -> None:
        self.features, self._chunk = features, chunk
        names = tuple(f"f{i}" for i in range(features))
        self.signal = Signal(rate, names, 1, 0, "features", ("smooth", "gap"))
        window = np.hanning(width + 2)[1:-1]
        self.taps = (window / window.sum()).astype(np.float32)

    def state_specs(self) -> dict[str, CellSpec]:
        return {"tail": CellSpec((len(self.taps) - 1, self.features))}

    def options(self, given: Mapping[str, Any]) -> None:
        if given:
            raise UserError(f"this model has no option {next(iter(given))!r:.40}", param=next(iter(given))[:40])

    def chunk(self, options: None) -> int:
        return self._chunk

    def begin(self, options: None) -> None:
        return None

    def forward(self, b: Batch, state: Mapping[str, CellPool]) -> Array:
        """b.inputs (T, 1, F) float32 -> (T, F), stream by stream."""
        tails = state["cell"].arrays["tail"]
        out = np.empty((len(b.inputs), self.features), np.float32)
        for leases, lo, hi in zip(b.leases, b.starts, b.starts[1:], strict=False):
            cell = leases["cell"].places[0]
            frames = np.concatenate([tails[cell], b.inputs[lo:hi, 0]])
            out[lo:hi] = self.offline(frames)
            tails[cell] = frames[len(frames) - len(tails[cell]) :]
        return out

    def offline(self, frames: Array) -> Array:
        """The plain convolution of (K - 1 + n, F) frames: (n, F)."""
        n = len(frames) - len(self.taps) + 1
        out = np.zeros((n, self.features), np.float32)
        for k, tap in enumerate(self.taps):
            out += tap * frames[k : k + n]
        return out

    def read(self, record: None, ends: Array, rows: Array, last: bool) -> Sequence[Reading]:
        if not len(rows):
            return ()
        rate = self.signal.rate
        return [Reading("smooth", (float(ends[0]) - 1) / rate, float(ends[-1]) / rate, {"samples": rows.copy()})]
