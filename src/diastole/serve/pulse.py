"""Pulse: how fast a source's clock runs by ours, measured from when its samples come."""

from __future__ import annotations

import math
from typing import Any

LEAST = 10.0  # seconds before anything is said
LIVE = 0.05  # a source that is further from its rate is none that a clock drives: a file, say
SURE = 3.0  # standard errors


class Pulse:
    """A line through (when, samples until then), by least squares: its slope is the rate, and jitter averages out.

    Args:
        rate: samples per second that the source says it sends.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._n, self._first = 0, (0.0, 0.0)
        self._t = self._s = 0.0  # means of seconds, and of seconds of samples
        self._tt = self._ts = self._ss = 0.0  # sums of products of differences from these
        self._span = 0.0  # seconds since the first

    def beat(self, now: float, samples: int) -> None:
        """So many samples have come in all."""
        if self._n == 0:
            self._first = now, samples / self.rate
        t, s = now - self._first[0], samples / self.rate - self._first[1]
        self._n += 1
        dt, ds = t - self._t, s - self._s
        self._t += dt / self._n
        self._s += ds / self._n
        self._tt += dt * (t - self._t)
        self._ts += dt * (s - self._s)
        self._ss += ds * (s - self._s)
        self._span = t

    def drift(self) -> tuple[float, float] | None:
        """By how much it is fast (or slow, below zero) as a share, and the standard error; None: that cannot be said
        yet, or it does not send as a clock drives it."""
        if self._n < 20 or self._span < LEAST:
            return None
        slope = self._ts / self._tt
        if abs(slope - 1) > LIVE:
            return None
        rest = max(self._ss - slope * self._ts, 0.0)
        return slope - 1, math.sqrt(rest / (self._n - 2) / self._tt)

    def told(self) -> dict[str, Any]:
        """For people: parts per million, once they are more than chance."""
        found = self.drift()
        if found is None or abs(found[0]) < SURE * found[1]:
            return {}
        return {"drift_ppm": round(1e6 * found[0], 1), "drift_error_ppm": round(1e6 * found[1], 1)}
