"""Hello: how a client of a live stream says what it is going to send, and how that becomes what the model takes."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from diastole.live import LiveParams
from diastole.types import Array, UserError

INDEX_BYTES = 8  # before the samples of an indexed piece: the number of the first, little endian
SOUND = "sound pressure"
FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}
PREFIXES = {"k": 1e3, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}
LARGEST = 1e30  # of a number: float32 holds it, and so does its square's root


class Card(Protocol):
    """What is known of the model: see ``live.Signal``."""

    name: str
    rate: float
    channels: list[str]
    hop: int
    quantity: str
    unit: str


class Hello(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="hello"):
    """The first message of a live stream.

    ``channels``: how many, in the model's order, or their names in the order in which they are sent. ``dtype``: of the
    samples, little endian, all channels of one after the other. ``scale``: what a number is multiplied with; none: 1,
    and for sound in whole numbers that which makes full scale 1. ``indexed``: each piece begins with the number of its
    first sample, at the rate in which it comes, eight bytes. ``chunks``: tell of each chunk when it was answered, also
    where nothing was found.
    """

    rate: float | None = None
    channels: int | list[str] | None = None
    dtype: Literal["int16", "int32", "float32", "float64"] = "float32"
    scale: float | None = None
    units: str = ""  # what the numbers are in, once scaled: "V", "mV"; "": what the model takes
    resample: bool = False
    indexed: bool = False
    chunks: bool = False
    options: dict[str, Any] = {}
    lost: str = "wait"
    patience: float = 0.5
    overrun: Literal["wait", "drop"] = "wait"
    deadline_ms: float = 0.0
    api_key: str = ""
    resume: str = ""  # the token of a stream whose connection was lost
    after: int = 0  # the last event of it that came

    def params(self) -> LiveParams:
        """What the engine is asked for.

        Raises:
            UserError: something is not to be understood.
        """
        overrun: Any = "drop" if self.overrun == "drop" else "refuse"
        lost: Any = self.lost
        params = LiveParams(self.options, lost, self.patience, overrun, self.deadline_ms / 1000)
        params.check()
        return params


class Converter:
    """From a client's bytes to float32 samples in the model's order and rate.

    Raises:
        UserError: they cannot be such; ``param`` names the field of the hello.
    """

    def __init__(self, hello: Hello, card: Card) -> None:
        self.indexed, self._dtype = hello.indexed, np.dtype(hello.dtype).newbyteorder("<")
        self._order = _order(hello.channels, card)
        self.channels = len(card.channels)
        self._sent = self.channels if self._order is None else _count(hello.channels)
        full = FULL_SCALE.get(hello.dtype)
        self._full = full
        scale = hello.scale
        if scale is None:
            scale = 1 / full if full and card.quantity == SOUND else 1.0
        if not np.isfinite(scale) or scale == 0:
            raise UserError("scale must be a finite number other than 0", param="scale")
        self._scale = np.float32(scale * factor(hello.units, card))
        self._sound = card.quantity == SOUND
        self.clipped = 0  # samples at full scale so far
        self.taken = 0  # samples that came so far, those of pieces that were refused too
        self.reached = 0  # the number of the sample that follows them, where some may be missing
        rate = hello.rate or card.rate
        self._resampler: Any = None
        self.ratio = card.rate / rate
        if rate != card.rate:
            if not hello.resample:
                message = (
                    f"{card.name} takes {card.rate:g} samples a second, not {rate:g}: send these, or resample=true"
                )
                raise UserError(message, param="rate")
            self._resampled = partial(resampler, rate, card.rate, self.channels)
            self._resampler = self._resampled()
        self._next = self._own = 0  # numbers of the samples that follow: the client's, and the model's

    def samples(self, data: bytes) -> tuple[Array, int | None]:
        """(n, C) float32 of a piece, and the number of its first sample where it says so.

        A resampler begins anew behind a gap, and what it still held is lost.

        Raises:
            UserError: it is no whole number of samples, or holds numbers that are none, or is to be resampled after
                what follows it.
        """
        first = None
        if self.indexed:
            if len(data) < INDEX_BYTES:
                raise UserError("an indexed piece begins with eight bytes of a sample's number", param="feed")
            first = int.from_bytes(data[:INDEX_BYTES], "little", signed=True)
            data = data[INDEX_BYTES:]
        size = self._dtype.itemsize * self._sent
        count = len(data) // size
        self.taken += count
        self.reached = max(self.reached, (self.reached if first is None else first) + count)
        if len(data) % size:
            message = f"a piece must be whole samples of {size} bytes ({self._sent} x {self._dtype.name}), not "
            raise UserError(f"{message}{len(data)} bytes", param="feed", code="invalid_chunk")
        raw = np.frombuffer(data, self._dtype).reshape(-1, self._sent)
        if raw.dtype.kind == "f" and not (np.abs(raw) < LARGEST).all():
            raise UserError("a piece holds NaN, infinity or absurd numbers", param="feed", code="invalid_chunk")
        self.clipped += self._clipped(raw)
        x = raw.astype(np.float32) * self._scale
        if self._order is not None:
            x = x[:, self._order]
        if self._resampler is not None:
            x, first = self._at_the_models_rate(x, first)
        return np.ascontiguousarray(x, np.float32), first

    def _at_the_models_rate(self, x: Array, first: int | None) -> tuple[Array, int | None]:
        """Raises:
        UserError: it comes after what follows it.
        """
        if first is not None and first != self._next:
            if first < self._next:
                message = f"pieces that are resampled must come in order: sample {first} came after {self._next - 1}"
                raise UserError(message, param="feed", code="invalid_chunk")
            self._resampler, self._own = self._resampled(), round(first * self.ratio)
            self._next = first
        own = self._own
        self._next += len(x)
        x = self._resampler.resample_chunk(x)
        self._own += len(x)
        return x, None if first is None else own

    def rest(self) -> Array:
        """What a resampler still holds when the input ends."""
        if self._resampler is None:
            return np.empty((0, self.channels), np.float32)
        found = self._resampler.resample_chunk(np.empty((0, self.channels), np.float32), last=True)
        return np.ascontiguousarray(found, np.float32)

    def _clipped(self, raw: Array) -> int:
        if self._full:
            return int(((raw >= self._full - 1) | (raw <= -self._full)).sum())
        return int((np.abs(raw) >= 1).sum()) if self._sound else 0


def resampler(rate: float, to: float, channels: int) -> Any:
    """A resampler of streams.

    Raises:
        UserError: the library for it is not there, or the rates are none.
    """
    if not 1 <= rate <= 1e7:
        raise UserError("rate must be 1 to 10 million samples a second", param="rate")
    try:
        import soxr
    except ImportError:
        raise UserError("resample needs soxr: pip install 'diastole[signals]'", param="resample") from None
    return soxr.ResampleStream(rate, to, channels, dtype="float32")


def factor(units: str, card: Card) -> float:
    """What a number in these units is multiplied with, to be in the model's.

    Raises:
        UserError: they measure something else.
    """
    if not units or not card.unit:
        return 1.0
    (scale, base), (own, wanted) = _taken_apart(units), _taken_apart(card.unit)
    if base != wanted:
        raise UserError(f"{card.name} takes {card.unit}, not {units!r:.20}", param="units", code="invalid_value")
    return scale / own


def _taken_apart(unit: str) -> tuple[float, str]:
    """A unit's prefix as a factor, and what is left."""
    unit = unit.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    return (PREFIXES[unit[0]], unit[1:]) if len(unit) > 1 and unit[0] in PREFIXES and unit[1] != "/" else (1.0, unit)


def _count(channels: int | list[str] | None) -> int:
    return channels if isinstance(channels, int) else len(channels or ())


def _order(given: int | list[str] | None, card: Card) -> list[int] | None:
    """Where each of the model's channels is in a sample; None: they are as they are sent."""
    own = card.channels
    if given is None or given == len(own):
        return None
    if isinstance(given, int):
        raise UserError(f"{card.name} takes {len(own)} channels ({_names(own)}), not {given}", param="channels")
    if len(set(given)) < len(given):
        raise UserError("a channel is named twice", param="channels")
    missing = [name for name in own if name not in given]
    if missing:
        message = f"{card.name} takes the channels {_names(own)}; {_names(missing)} are missing"
        raise UserError(message, param="channels")
    unknown = [name for name in given if name not in own]
    if unknown:
        raise UserError(f"{card.name} has no channel {_names(unknown)}; it takes {_names(own)}", param="channels")
    order = [given.index(name) for name in own]
    return None if order == list(range(len(own))) else order


def _names(names: list[str]) -> str:
    shown = ", ".join(n[:40] for n in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
