"""The words of the engine, data only: Request, SLO, Stream, Ask, Grant, Batch, Event, state specs and user errors.

One word has one meaning. A *request* is a wish and never changes; a *stream* is the living thing that answers it (one
per choice when ``n > 1``). A stream has ``known`` units (given, fed or sampled so far) and ``done`` units (absorbed
into its state); every kind of decoding is "done catches up with known". A *unit* is whatever the stream's loop counts:
tokens, frames, windows, denoising steps, ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from diastole.nn.decoder import Decoder
    from diastole.state.lease import Lease

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class UserError(ValueError):
    """Something the user gave is wrong. The message is for the user; it names the field and what would be right.

    Args:
        message: one or two plain sentences.
        param: the request field or setting at fault, if one is.
        code: a short machine-readable reason such as ``"context_length_exceeded"``.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class SLO:
    """Promised times in seconds: first output (TTFT), gap between outputs (TPOT or frame period), whole request."""

    first: float = 10.0
    gap: float = 1.0
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The user's wish. ``inputs`` and ``params`` are of the kind that the service's loop reads."""

    id: str
    service: str
    inputs: Any
    params: Any
    slo: SLO = SLO()
    arrival: float = 0.0  # seconds on the engine's clock
    salt: str = ""  # isolates this request's cached prefixes from other salts
    priority: int = 0  # lower is sooner, where the engine admits by priority


@dataclass(eq=False, slots=True)
class Stream:
    """The living answer to one choice of a request: owned by the engine's ledger, mutated only by its loop."""

    req: Request
    index: int  # which choice of the request, 0..n-1
    known: int
    done: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)  # empty: waiting, or parked
    own: Any = None  # the loop's private record
    scratch: dict[str, Any] = field(default_factory=dict)  # techniques' private notes
    emitted_at: float | None = None  # seconds; None before the first output
    serial: int = 0  # order of arrival, given by the ledger
    finished: bool = False
    speaks: bool = True  # False: it only reads, and ends with one result that is no unit of output
    given: int = 0  # units that came with the request; those that ``known`` has more are its own output

    @property
    def left(self) -> int:
        """Units known but not yet absorbed."""
        return self.known - self.done

    @property
    def due(self) -> float:
        """When the next output is promised, in seconds on the engine's clock."""
        if self.emitted_at is None:
            return self.req.arrival + self.req.slo.first
        return self.emitted_at + self.req.slo.gap


class Ask(NamedTuple):
    """A stream's offer: "I could run between ``lo`` and ``hi`` units now"; ``emits``: running them gives output."""

    stream: Stream
    lo: int
    hi: int
    due: float
    emits: bool
    group: Hashable = None  # only asks of one group may share a batch


class Grant(NamedTuple):
    """The engine's answer to an ask: ``n`` units of this stream run in this step."""

    stream: Stream
    n: int


class Owed(NamedTuple):
    """What must be done by a time, and the seconds that it takes."""

    due: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Tap:
    """Hidden states that a loop reads beside the output: the model writes those of batch rows ``rows``, after its final
    norm, to ``hidden``."""

    rows: Array  # (N,) int32
    hidden: Array  # (N, d) float32


class Draft(NamedTuple):
    """Guesses at what follows a stream's last known token: a chain, or a tree whose nodes come after their parents."""

    tokens: Sequence[int]  # (n,), it may be empty
    parents: Sequence[int] | None = None  # (n,), -1: the last known token; None: each follows the one before
    q: Array | None = None  # (n, V) float32: what each was drawn from, with all that its request asks for
    odds: Sequence[float] | None = None  # (n,): how likely each is thought to be right if its parent is


class Sown(NamedTuple):
    """A draft in a batch."""

    draft: Draft
    rows: Sequence[int]  # (1 + n,) of the batch: of the last known token, and of each node


Relay: TypeAlias = "Callable[[Decoder, Batch, Mapping[str, Any]], Array]"  # logits of the wanted rows (W, V)


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one forward pass reads, passed explicitly. T = rows (granted units), B = streams; of a stream whose
    draft branches each branch counts as one, with pages of its own, in ``starts`` and ``tables``.

    Row t of stream b sees that stream's cached units ``lo[t] <= j < hi[t]``: causal, windowed and full masks are all
    this pair of numbers.
    """

    grants: Sequence[Grant]  # (B,)
    leases: tuple[Mapping[str, Lease], ...]  # (B,)
    inputs: Array  # (T,) int32 ids, or (T, F) features
    pos: Array  # (T,) int32 position within the stream
    starts: Array  # (B+1,) int32: rows of stream b are starts[b]:starts[b+1]
    rows: Array  # (T,) int64 physical cache row of each batch row; empty where nothing is paged
    tables: Array  # (B, P) int32 page ids
    lo: Array  # (T,) int32
    hi: Array  # (T,) int32
    want: Array  # (W,) int32 batch rows whose output is read
    starved: tuple[Stream, ...] = ()  # granted, but the pool had no room
    also: Array | None = None  # (E, 2) int64: rows of the batch, and further cache rows that hold what they write
    sown: tuple[Sown | None, ...] = ()  # (B,) where the loop drafts
    relay: Relay | None = None  # another way through the model than from its first layer to its last
    tap: Tap | None = None  # only from a loop that knows that its model has them
    extra: Mapping[str, Any] = field(default_factory=dict)  # what one loop and its model agree on
    notes: dict[str, Any] = field(default_factory=dict)  # techniques' private notes of this step

    def __len__(self) -> int:
        return len(self.grants)


class Event(NamedTuple):
    """One output of one stream."""

    id: str  # request id
    choice: int
    data: Any  # what the loop emits, e.g. loops.texts.Tokens
    final: bool  # this choice ends here
    at: float  # seconds
    speaks: bool = True  # as its stream
    units: int = 1  # of output


class Ended(NamedTuple):
    """What the last event of a stream carries that the engine itself ended, with all others of its request."""

    finish: Literal["deadline", "error"]  # its time was up, or a step could not be run because of it


class Outcome(NamedTuple):
    """What a commit brought: outputs, streams born by forking (choices 1..n-1 of a request), and those that failed."""

    events: list[Event]
    born: list[Stream]
    failed: Sequence[tuple[Stream, Exception]] = ()


@dataclass(frozen=True, slots=True)
class PagedSpec:
    """State that grows with the stream: key/value rows kept in pages."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class CellSpec:
    """State of fixed size per stream: convolution tails, recurrent state, membranes."""

    shape: tuple[int, ...]
    dtype: str = "float32"


KVFormat: TypeAlias = Literal["f32", "bf16", "int8", "rows", "rows8"]  # rows, rows8: bf16 and int8 token by token
