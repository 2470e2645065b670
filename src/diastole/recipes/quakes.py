"""Simulated earthquakes over real ground noise, with arrivals that are known because they were put there.

The noise is recorded: hours and minutes of quiet ground that come with ObsPy (LGPL), each channel of a window a crop of
its own, half of them with their phases shuffled. The waves are made up: filtered noise in an envelope that rises at
once or slowly and dies away, S later, slower and stronger on the horizontals, one direction for the whole event.
Nothing of it was ever an earthquake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.types import Array, UserError

RATE, WINDOW = 100.0, 3000
EVENTS = (0.15, 0.65, 0.2)  # chances of none, one, two in a window
SNR = (-5.0, 30.0)  # dB, of the P wave's first second over the noise
LAG = (0.3, 20.0)  # seconds from P to S
# Recordings of quiet ground: file, channels at most. Of the long ones the last quarter is kept for tests, of the others
# every fourth file.
LONG = (
    "io/ascii/tests/data/mseed2ascii_miniseed_record.txt",
    "signal/tests/data/ref_STS2",
    "signal/tests/data/ref_unknown",
    "io/mseed/tests/data/gaps.mseed",
)
SHORT = tuple(f"io/win/tests/data/10030302.{minute:02d}" for minute in range(11))


@dataclass(frozen=True, slots=True)
class Noise:
    """Recorded noise at 100 Hz."""

    records: Sequence[Array]

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """(n, 3): of one record that is long enough, deviation 1 together.

        Raises:
            UserError: none is.
        """
        weights = np.sqrt([len(r) if len(r) > n else 0 for r in self.records])
        if not weights.any():
            raise UserError(f"no recording of noise has {n} samples", param="data")
        record = self.records[rng.choice(len(self.records), p=weights / weights.sum())]
        out = np.empty((n, 3), np.float32)
        for channel in range(3):
            at = int(rng.integers(len(record) - n + 1))
            part = record[at : at + n] - record[at : at + n].mean()
            if rng.random() < 0.5:
                spectrum = np.fft.rfft(part)
                part = np.fft.irfft(np.abs(spectrum) * np.exp(2j * np.pi * rng.random(len(spectrum))), n)
            out[:, channel] = part * rng.uniform(0.7, 1.4)
        return out / max(float(out.std()), 1e-9)


def noise() -> tuple[Noise, Noise]:
    """What comes with ObsPy, to train on and to test on.

    Raises:
        UserError: ObsPy is not installed.
    """
    root = obspy_root()
    train, test = [], []
    for name in LONG:
        for record in records(root / name):
            cut = len(record) * 3 // 4
            train.append(record[:cut])
            test.append(record[cut:])
    for i, name in enumerate(SHORT):
        (test if i % 4 == 3 else train).extend(records(root / name))
    return Noise([r for r in train if len(r) > WINDOW]), Noise([r for r in test if len(r) > WINDOW])


def obspy_root() -> Path:
    """Where ObsPy lies, with the recordings of its tests.

    Raises:
        UserError: it is not installed.
    """
    try:
        import obspy
    except ImportError:
        raise UserError("this needs ObsPy, with recordings: pip install 'diastole[signals]'", param="data") from None
    return Path(obspy.__file__).parent


def records(path: Path) -> list[Array]:
    """The channels of a recording at 100 Hz, without anything below half a hertz."""
    import obspy
    from scipy.signal import resample_poly

    found = []
    for trace in obspy.read(str(path)):
        x = trace.data.astype(np.float64)
        x = resample_poly(x - x.mean(), int(RATE), round(trace.stats.sampling_rate))
        found.append(_above(x, 0.5).astype(np.float32))
    return found


def _above(x: Array, hz: float) -> Array:
    from scipy.signal import butter, sosfiltfilt

    filtered: Array = sosfiltfilt(butter(2, hz, "highpass", fs=RATE, output="sos"), x)
    return filtered


@dataclass(frozen=True, slots=True)
class Event:
    """Arrivals in samples, and how far the P wave stands out."""

    p: int
    s: int
    snr: float  # dB


@dataclass(frozen=True, slots=True)
class Window:
    """30 s of made-up ground motion."""

    x: Array  # (3000, 3) float32: E, N, Z
    events: Sequence[Event]


def window(
    rng: np.random.Generator, quiet: Noise, events: int | None = None, snr: float | None = None, dead: float = 0.05
) -> Window:
    """Noise with some events in it, whose arrivals may lie outside.

    Args:
        events: how many; None: none, one or two, and they may be cut. Otherwise all arrivals are well inside.
        snr: dB; None: any.
        dead: chance that a channel is.
    """
    x = quiet.draw(rng, WINDOW)
    found = []
    for _ in range(rng.choice(3, p=EVENTS) if events is None else events):
        strength = rng.uniform(*SNR) if snr is None else snr
        lag = int(RATE * np.exp(rng.uniform(*np.log(LAG))))
        p = int(rng.integers(-200, WINDOW - 60) if events is None else rng.integers(200, WINDOW - 300 - min(lag, 2000)))
        x += 10 ** (strength / 20) * waves(rng, p, p + lag)
        found.append(Event(p, p + lag, strength))
    if rng.random() < 0.2:  # somebody drives by
        at, rise = int(rng.integers(WINDOW)), rng.uniform(0.5, 3)
        bump = _burst(rng, at, np.exp(rng.uniform(np.log(3), np.log(30))), rng.uniform(1, 4), rise)
        x += bump * rng.uniform(0.2, 1, 3) * 10 ** (rng.uniform(0, 15) / 20)
    if rng.random() < dead:
        x[:, rng.integers(3)] = 0
    return Window(x.astype(np.float32), found)


def record(rng: np.random.Generator, quiet: Noise, events: int, apart: int = 2 * WINDOW) -> Window:
    """A long one: events that far apart, in samples, and as much noise."""
    x = quiet.draw(rng, events * apart + WINDOW)
    found = []
    for i in range(events):
        lag = int(RATE * np.exp(rng.uniform(*np.log(LAG))))
        at, strength = i * apart + int(rng.integers(apart // 2)), rng.uniform(5, SNR[1])
        x[at : at + WINDOW] += 10 ** (strength / 20) * waves(rng, 100, 100 + lag)
        found.append(Event(at + 100, at + 100 + lag, strength))
    return Window(x.astype(np.float32), found)


def waves(rng: np.random.Generator, p: int, s: int) -> Array:
    """(3000, 3): an event whose P wave has deviation 1 in its first second, on the channel where it is largest."""
    azimuth, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.7)
    ray = np.array([np.sin(azimuth) * steep, np.cos(azimuth) * steep, np.sqrt(1 - steep**2)])
    turn = rng.uniform(0, 2 * np.pi)
    across = np.array([np.sin(turn), np.cos(turn), rng.uniform(-0.4, 0.4)])
    hz = np.exp(rng.uniform(np.log(2), np.log(15)))
    decay = np.exp(rng.uniform(np.log(0.3), np.log(6)))
    rise, later = (np.exp(rng.uniform(np.log(0.005), np.log(0.3))) for _ in range(2))
    one = _burst(rng, p, hz, decay, rise) * ray
    two = _burst(rng, s, hz * rng.uniform(0.4, 0.95), decay * rng.uniform(1, 2.5), later) * across
    # What scatters on the way comes from everywhere, and some of P comes again by other ways before S does.
    coda = np.concatenate([_burst(rng, p, hz, decay, rise) for _ in range(3)], 1) * rng.uniform(0.1, 0.5)
    tail = np.concatenate([_burst(rng, s, hz * 0.6, decay * 2, later) for _ in range(3)], 1) * rng.uniform(0.1, 0.6)
    for _ in range(rng.integers(4)):
        at = p + int((s - p) * rng.uniform(0.1, 0.9))
        way = rng.normal(size=3)
        one += _burst(rng, at, hz, decay, rise) * way / np.linalg.norm(way) * rng.uniform(0.2, 1.0)
    found: Array = one + coda + np.exp(rng.uniform(np.log(1.2), np.log(8))) * (two + tail)
    return found / np.abs(ray).max()


def _burst(rng: np.random.Generator, at: int, hz: float, decay: float, rise: float) -> Array:
    """(3000, 1): noise about a frequency, from sample ``at`` on, deviation about 1 in its first second."""
    n = WINDOW - max(at, 0)
    out = np.zeros((WINDOW, 1))
    if n <= 0:
        return out
    length = WINDOW - at
    t = np.arange(length) / RATE
    spectrum = np.fft.rfft(rng.normal(size=length))
    octaves = np.log(np.maximum(np.fft.rfftfreq(length, 1 / RATE), 0.05) / hz)
    wave = np.fft.irfft(spectrum * np.exp(-0.5 * (octaves / rng.uniform(0.25, 0.9)) ** 2), length)
    wave *= (1 - np.exp(-t / rise)) * np.exp(-t / decay)
    first = wave[: int(RATE)].std()
    out[max(at, 0) :, 0] = (wave / max(first, 1e-9))[length - n :]
    return out


def targets(found: Window) -> Array:
    """(3, 3000) float32: noise, P and S, a bell of six samples' deviation about each arrival."""
    out = np.zeros((3, WINDOW), np.float32)
    bell = np.exp(-(np.arange(-15, 16) ** 2) / (2 * 6.0**2))
    for event in found.events:
        for row, at in ((1, event.p), (2, event.s)):
            lo, hi = max(at - 15, 0), min(at + 16, WINDOW)
            if lo < hi:
                out[row, lo:hi] = np.maximum(out[row, lo:hi], bell[lo - at + 15 : hi - at + 15])
    total = out.sum(0)
    out /= np.maximum(total, 1)  # two arrivals at once
    out[0] = 1 - out.sum(0)
    return out


def batch(rng: np.random.Generator, quiet: Noise, size: int) -> tuple[Array, Array]:
    """Normalised windows (size, 3, 3000) and their targets."""
    found = [window(rng, quiet) for _ in range(size)]
    x = np.stack([w.x for w in found]).astype(np.float64)
    x -= x.mean(1, keepdims=True)
    deviation = x.std(1, keepdims=True)
    alive = deviation > 0
    x = x / np.where(alive, deviation, 1) * (3 / np.maximum(alive.sum(2, keepdims=True), 1))
    return np.ascontiguousarray(x.transpose(0, 2, 1), np.float32), np.stack([targets(w) for w in found])


def about() -> dict[str, Any]:
    """What a checkpoint says of its data."""
    import obspy

    return {"noise": f"recordings of quiet ground from ObsPy {obspy.__version__} (LGPL-3)", "events": "simulated"}
