"""What a model of live input shows to its loop, and what comes in and out of it: data and one Protocol.

Input is samples of C channels at a rate. A *unit* is ``hop`` samples: what the model takes in at a time. What it finds
is told as *readings*: each a kind, a stretch of the stream, and plain values.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_type_hints

from diastole.types import Array, Batch, CellSpec, UserError

T = TypeVar("T")


class Signal(NamedTuple):
    """What a live model takes in."""

    rate: float  # samples per second
    channels: tuple[str, ...]  # in the model's order
    hop: int  # samples of a unit
    window: int = 0  # samples that the answer to one unit looks at; 0: as far back as the state reaches
    quantity: str = ""  # what the samples measure: "sound pressure", "ground motion"
    kinds: tuple[str, ...] = ()  # of readings
    unit: str = ""  # what a sample of one is: "uV"; "": the model looks at no absolute sizes

    @property
    def period(self) -> float:
        """Seconds of a unit."""
        return self.hop / self.rate


class Reading(NamedTuple):
    """One thing that a model has found in a stretch of its input."""

    kind: str  # partial, final, pick, label, gap, ...
    start: float  # seconds of the stream
    end: float
    data: Mapping[str, Any]  # plain values


class Chunk(NamedTuple):
    """A piece of live input."""

    data: Array  # (n, C) float32, or the same numbers in a row
    first: int | None = None  # number of its first sample in the stream; None: it follows what came before
    last: bool = False  # nothing more will come
    came: float | None = None  # when, on the engine's clock; None: now


class Counts(NamedTuple):
    """What became of samples that were not simply read."""

    lost: int = 0  # never came
    late: int = 0  # came when others already stood for them
    overrun: int = 0  # thrown away because too many waited


class LiveModel(Protocol):
    """A model of live input."""

    @property
    def caps(self) -> frozenset[str]: ...

    @property
    def signal(self) -> Signal: ...

    def state_specs(self) -> Mapping[str, CellSpec]:
        """What it keeps of a stream, beside the samples of a window."""
        ...

    def options(self, given: Mapping[str, Any]) -> Any:
        """A request's options, checked and filled up; ``options_of`` does it.

        Raises:
            UserError: one is unknown, or wrong.
        """
        ...

    def chunk(self, options: Any) -> int:
        """Units that it runs at once, of a stream with these options; only the last chunk may be shorter."""
        ...

    def begin(self, options: Any) -> Any:
        """What ``read`` remembers of a stream, at its beginning or after a gap."""
        ...

    def forward(self, b: Batch, state: Any) -> Array:
        """An output for each row of ``b.inputs`` (T, hop or window, C) float32, which has the samples
        ``lo[t] <= j < hi[t]`` of unit ``pos[t]``; the others are zero. A stream may have no row: its input has
        ended."""
        ...

    def read(self, record: Any, ends: Array, rows: Array, last: bool) -> Sequence[Reading]:
        """What outputs say.

        Args:
            ends: (R,) the stream's sample behind each row's unit.
            rows: (R, ...) outputs.
            last: nothing more will come.
        """
        ...


@dataclass(frozen=True, slots=True)
class LiveParams:
    """What a live request asks for.

    ``lost``: what becomes of input that does not come. "wait": it may still come, until ``patience`` seconds of later
    input have; then as "conceal": zeros stand for it. "drop": the stream begins anew behind it.
    ``overrun``: what becomes of input that comes faster than it is answered, beyond what is held. "refuse": an error;
    "drop": the oldest is lost.
    ``deadline``: seconds after a chunk's last sample in which its answer is owed; 0: as long as the chunk lasts.
    """

    options: Mapping[str, Any] = field(default_factory=dict)  # the model's own
    lost: Literal["wait", "conceal", "drop"] = "wait"
    patience: float = 0.5
    overrun: Literal["refuse", "drop"] = "refuse"
    deadline: float = 0.0

    def check(self) -> None:
        """Raises:
        UserError: one of them is not to be understood.
        """
        if self.lost not in {"wait", "conceal", "drop"}:
            raise UserError(f"lost must be wait, conceal or drop, not {self.lost!r:.40}", param="lost")
        if self.overrun not in {"refuse", "drop"}:
            raise UserError(f"overrun must be refuse or drop, not {self.overrun!r:.40}", param="overrun")
        if not 0 <= self.patience <= 60:
            raise UserError("patience must be 0 to 60 seconds", param="patience")
        if not 0 <= self.deadline <= 3600:
            raise UserError("deadline must be 0 to 3600 seconds", param="deadline")


def options_of(kind: type[T], given: Mapping[str, Any]) -> T:
    """A dataclass of options from plain values.

    Raises:
        UserError: an option is unknown, or its value of another type.
    """
    types = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise UserError(f"this model has no option {name!r:.40}: {hint}", param=name[:40])
        wanted = types[name]
        if wanted is float and type(value) is int:
            continue
        if wanted in {bool, int, float, str} and type(value) is not wanted:
            raise UserError(f"option {name} must be of type {wanted.__name__}, not {value!r:.40}", param=name)
    return kind(**given)
