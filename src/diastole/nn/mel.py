"""Log-mel spectra of a stream of samples, each from the past alone.

The spectrum of a frame is that of the window that ends with it, so a stream needs to keep ``tail`` samples only, and
what is streamed equals what is computed at once. There is no normalisation: it would look ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diastole.nn.conv import Dense
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

FLOOR = 2.0**-20  # of power, before the logarithm


class LogMel:
    """Frames of ``hop`` samples.

    Args:
        rate: samples per second.
        bands: of the filters, triangles that are equally wide in mel.
        width: samples of a window (Hann).
    """

    def __init__(self, ops: Ops, rate: int = 16_000, bands: int = 80, width: int = 400, hop: int = 160) -> None:
        self.hop, self.width, self.tail, self.bands = hop, width, width - hop, bands
        self._size = 1 << (width - 1).bit_length()
        self._window = np.hanning(width + 1)[:-1].astype(np.float32)
        self._filters = Dense(ops, filters(rate, self._size, bands))

    def __call__(self, x: Array) -> Array:
        """x (B, tail + n hop) float32 -> (B, n, bands)."""
        frames = np.lib.stride_tricks.sliding_window_view(x, self.width, axis=1)[:, :: self.hop]
        spectrum = np.fft.rfft(frames * self._window, self._size)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        found: Array = np.log(self._filters(power) + np.float32(FLOOR))
        return found


def filters(rate: int, size: int, bands: int) -> Array:
    """(bands, size / 2 + 1): each triangle's area is 1 in hertz, as Slaney has it."""

    def mel(hz: Array) -> Array:
        found: Array = 2595 * np.log10(1 + hz / 700)
        return found

    at = np.linspace(0, mel(np.array(rate / 2)), bands + 2)
    corners = 700 * (10 ** (at / 2595) - 1)
    hz = np.fft.rfftfreq(size, 1 / rate)
    rising = (hz - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - hz) / (corners[2:] - corners[1:-1])[:, None]
    triangles = np.maximum(np.minimum(rising, falling), 0)
    found: Array = (triangles * (2 / (corners[2:] - corners[:-2]))[:, None]).astype(np.float32)
    return found
