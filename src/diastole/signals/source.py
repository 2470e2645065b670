"""Source: samples with a rate and channel names, piece by piece, from whatever the user names.

``source("talk.wav")``, ``source("day.mseed")``, ``source("night.edf")``, ``source("mic")``, ``source("lsl:NAME")``,
``source("seedlink:HOST/NET.STA")``: the format follows from the name. Each needs the field's own library, which comes
with ``pip install 'diastole[signals]'``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from diastole.types import Array, UserError

PIECE = 0.1  # seconds of a piece of a file
MOST = 10**8  # samples from the first to the last of a file of ground motion

SOUND = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".w64", ".opus"})
BRAIN = frozenset({".edf", ".bdf", ".fif", ".gdf", ".vhdr", ".set"})


class About(NamedTuple):
    """What a source sends."""

    rate: float  # samples per second
    channels: tuple[str, ...]
    start: float | None = None  # seconds since the epoch at the first sample, where that is known
    live: bool = False  # it comes at its own pace
    station: str = ""  # network and station, as "BW.RJOB", where there is one


class Piece(NamedTuple):
    """Samples of a source. ``first``: the number of the first one, where some may be missing before it."""

    x: Array  # (n, C) float32
    first: int | None = None


class Source(Protocol):
    """Samples as they come. Close it when done with it, once or more often: whoever waits for the next piece of a live
    one then hears that there is none."""

    about: About

    def __iter__(self) -> Iterator[Piece]: ...

    def close(self) -> None: ...


class Recorded:
    """A recording that is in memory; ``missing`` (n,) bool: samples that nobody recorded, which no piece holds."""

    def __init__(self, x: Array, about: About, seconds: float = PIECE, missing: Array | None = None) -> None:
        self.x, self.about, self.missing = x, about, missing
        self._size = max(round(seconds * about.rate), 1)

    def __iter__(self) -> Iterator[Piece]:
        for lo, hi in [(0, len(self.x))] if self.missing is None else _stretches(~self.missing):
            for at in range(lo, hi, self._size):
                yield Piece(self.x[at : min(at + self._size, hi)], at)

    def close(self) -> None:
        """Nothing is open."""


def source(name: str) -> Source:
    """What a user names.

    Raises:
        UserError: it is not there, cannot be read, or its library is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "lsl" and rest:
        from diastole.signals.lsl import LabStream

        return LabStream(rest)
    if kind == "seedlink" and rest:
        from diastole.signals.seedlink import SeedLink

        return SeedLink(rest)
    if name == "mic":
        from diastole.signals.mic import Microphone

        return Microphone()
    path = Path(name).expanduser()
    if not path.is_file():
        hint = "or mic, lsl:NAME, seedlink:HOST/NET.STA"
        raise UserError(f"{name!r:.200} is no file; give a recording, {hint}", param="source")
    suffix = path.suffix.lower()
    if suffix in SOUND:
        return sound(path)
    if suffix in BRAIN:
        return brain(path)
    if suffix in {".npy", ".csv", ".txt"}:
        raise UserError(f"{path.name} says nothing of its rate: use --rate with .npy or .csv", param="source")
    return ground(path)


def sound(path: Path) -> Recorded:
    """Of a sound file, its channels mixed into one."""
    soundfile = library("soundfile")
    try:
        x, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as e:
        raise UserError(f"{path.name} cannot be read as sound: {e}", param="source") from None
    return Recorded(np.ascontiguousarray(x.mean(1, keepdims=True)), About(float(rate), ("mono",)))


def numbers(path: Path, rate: float, channels: tuple[str, ...] = ()) -> Recorded:
    """Of a table of numbers, samples in rows: .npy, or text with commas.

    Raises:
        UserError: it is none.
    """
    try:
        if path.suffix.lower() == ".npy":
            x = np.load(path, allow_pickle=False)
        else:
            x = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as e:
        raise UserError(f"{path.name} cannot be read as numbers: {e}", param="source") from None
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise UserError(f"{path.name} must hold numbers, samples in rows and channels in columns", param="source")
    names = channels or tuple(f"ch{i + 1}" for i in range(x.shape[1]))
    if len(names) != x.shape[1]:
        raise UserError(f"{path.name} has {x.shape[1]} channels, and {len(names)} are named", param="channels")
    return Recorded(x.astype(np.float32), About(rate, names))


def brain(path: Path) -> Recorded:
    """Of a file of EEG or MEG, in microvolts where it says volts."""
    mne = library("mne")
    try:
        raw = mne.io.read_raw(str(path), preload=True, verbose="error")
        x = np.ascontiguousarray(raw.get_data(units={"eeg": "uV"} if "eeg" in raw else None).T, np.float32)
    except Exception as e:  # whatever a damaged file does to its reader
        raise UserError(f"{path.name} cannot be read as EEG: {_line(e)}", param="source") from None
    at = raw.info["meas_date"]
    return Recorded(x, About(float(raw.info["sfreq"]), tuple(raw.ch_names), None if at is None else at.timestamp()))


def ground(path: Path) -> Recorded:
    """Of a file of ground motion: three components of one station, named E, N and Z by the end of their codes. What one
    of them lacks is missing, and zero in ``x``."""
    obspy = library("obspy")
    try:
        stream = obspy.read(str(path))
        spans = [(t.stats.endtime - stream[0].stats.starttime) * t.stats.sampling_rate for t in stream]
        if max(map(abs, spans)) > MOST:
            raise ValueError(f"its stretches lie more than {MOST:,} samples apart")
        order = list(dict.fromkeys(t.id for t in stream))
        stream.merge()  # which forgets the file's order where a component has gaps
        stream.traces.sort(key=lambda t: order.index(t.id))
    except Exception as e:  # whatever a damaged file does to its reader
        raise UserError(f"{path.name} cannot be read as ground motion: {_line(e)}", param="source") from None
    stations = sorted({f"{t.stats.network}.{t.stats.station}" for t in stream})
    if len(stations) > 1:
        message = f"{path.name} holds {len(stations)} stations ({', '.join(stations[:8])}): give one at a time"
        raise UserError(message, param="source")
    stream.trim(max(t.stats.starttime for t in stream), min(t.stats.endtime for t in stream))
    traces = {component(t.stats.channel): t for t in stream}
    rates = {t.stats.sampling_rate for t in stream}
    if len(rates) > 1:
        raise UserError(f"{path.name} holds channels of {len(rates)} rates: give one", param="source")
    n = min(len(t) for t in traces.values())
    parts = [t.data[:n] for t in traces.values()]
    missing = np.logical_or.reduce([np.ma.getmaskarray(p) for p in parts])
    x = np.stack([np.ma.filled(p, 0).astype(np.float32) for p in parts], 1)
    first = next(iter(traces.values())).stats
    start = float(first.starttime.timestamp)
    about = About(float(first.sampling_rate), tuple(traces), start, station=stations[0])
    return Recorded(x, about, missing=missing if missing.any() else None)


def _stretches(here: Array) -> Iterator[tuple[int, int]]:
    """Where runs of True begin and end."""
    edges = np.flatnonzero(np.diff(here.astype(np.int8), prepend=0, append=0))
    yield from ((int(lo), int(hi)) for lo, hi in edges.reshape(-1, 2))


def component(channel: str) -> str:
    """E, N or Z of a channel's code, whose last letter it is; 1 and 2 are horizontals that point elsewhere."""
    last = channel[-1:].upper()
    return {"1": "N", "2": "E", "3": "Z"}.get(last, last)


def library(name: str) -> Any:
    """A library that comes with the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install 'diastole[signals]'", param="source") from None
    except RuntimeError as e:  # pylsl, where its own library is missing
        raise UserError(f"{name} cannot be used here: {_line(e)}", param="source") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
