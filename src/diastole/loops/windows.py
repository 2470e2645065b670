"""Live windows: models that look at the last seconds of their input, again and again.

A unit is the hop from one window to the next. A stream's cell keeps the last window's samples; a row is the window that
ends with its unit. Before a whole window has come there is nothing to see, except when the input ends: then the one row
is what there is.
"""

from __future__ import annotations

import numpy as np

from diastole.live import LiveModel
from diastole.loops.frames import Live, LiveFrames, Rows, Taken
from diastole.types import CellSpec

RING = "ring"  # what a cell calls the last samples; a model's own state has other names


class LiveWindows(LiveFrames):
    """The loop of models that look at windows."""

    unit = "window"

    @staticmethod
    def specs(model: LiveModel) -> dict[str, CellSpec]:
        signal = model.signal
        return {**model.state_specs(), RING: CellSpec((signal.window, len(signal.channels)))}

    @property
    def shape(self) -> tuple[int, int]:
        return self.signal.window, len(self.signal.channels)

    def rows(self, taken: Taken) -> Rows:
        """The windows that end with a chunk's units."""
        stream, n = taken.grant
        live: Live = stream.own
        hop, window = self.signal.hop, self.signal.window
        ring = self.pool.arrays[RING][stream.leases["cell"].places[0]]
        seen = live.intake.seen(stream.done)
        both = np.concatenate([ring, taken.data])
        ring[:] = both[len(both) - window :]
        ends = np.minimum(np.arange(1, n + 1) * hop, len(taken.data))
        whole = seen + ends >= window
        if live.intake.ended and n == stream.left:  # the last unit: behind no sample, or part of a window, all there is
            whole[-1] = len(taken.data) > (n - 1) * hop or 0 < seen + len(taken.data) < window
        units = np.flatnonzero(whole)
        inputs = (
            np.stack([both[e : e + window] for e in ends[units]]) if len(units) else both[:0].reshape(0, *self.shape)
        )
        lo = np.maximum(window - seen - ends[units], 0).astype(np.int32)
        return Rows(inputs, (stream.done + units).astype(np.int32), lo, np.full(len(units), window, np.int32))
