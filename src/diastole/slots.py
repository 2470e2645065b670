"""The slots: the closed list of places where a policy may act, and the Protocols of those in use.

``SLOTS`` says of each slot whether a service holds exactly one policy there or a chain of several. A slot's Protocol is
written when its second user comes; until then the name is reserved here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from diastole.types import Array, Ask, Batch, Grant, KVFormat, Owed, PagedSpec, Stream

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.nn.decoder import Decoder
    from diastole.state.lease import Lease, Pool

SLOTS: dict[str, Literal["single", "chain"]] = {
    "kv": "single",
    "evict": "single",
    "select": "single",
    "kernel": "single",
    "probe": "chain",
    "refresh": "single",
    "absorb": "single",
    "draft": "single",
    "verify": "single",
    "pace": "single",
    "halt": "chain",
    "tap": "chain",
    "route": "single",
    "weights": "chain",
    "ingest": "chain",
    "compose": "single",
    "dispatch": "single",
    "place": "single",
}


NO_END = 1 << 62  # units: more than any stream has


@dataclass(frozen=True, slots=True)
class Facts:
    """What a technique may know of the model that it is built for."""

    caps: frozenset[str]
    layers: int = 0
    heads: int = 0  # query heads
    kv_heads: int = 0
    head_dim: int = 0
    context: int = 0  # most tokens of a stream
    windowed: bool = False  # some layers see a window only
    fingerprint: str = ""  # of the model's file
    source: Path | None = None  # that file, or the directory of its files
    ops: Ops | None = None
    rope: Array | None = None  # the table (see nn.rope) that all layers rotate by; None: there is no such one
    decoder: Decoder | None = None  # the model itself, for who computes with its matrices
    streams: int = 0  # that may run at once; 0: nobody said


class Companion(Protocol):
    """What a policy keeps beside every page of keys and values. It travels with the page: copied on write, packed when
    a stream is preempted, shared when a prefix is."""

    layout: str  # a short name that changes with the meaning of its bytes

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> Sequence[Array]:
        """Its arrays, one for each layer that it keeps something of, with an axis of ``pages`` first."""
        ...

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        """New rows, as for ``KVStore.write``."""
        ...


class Rooms(Protocol):
    """Room to write pages in, where there is less of it than there are pages."""

    most: int  # pages that one lease has room for at once
    leases: Collection[Lease]  # set by the pool: all that hold pages

    @property
    def free(self) -> int:
        """Pages that could get room now."""
        ...

    def take(self, page: int) -> None:
        """This page is going to be written to."""
        ...

    def give(self, page: int) -> None:
        """Nobody holds it any more."""
        ...

    def wanted(self, data: Array) -> int:
        """Of packed pages, those that need room."""
        ...

    def lacks(self, page: int) -> bool:
        """Whether something of a cached page is gone that the same page has when it is written anew."""
        ...


class KVStore(Protocol):
    """Slot ``kv``: how key and value rows are kept. Allocated once per service, before the first write."""

    layout: str  # what packed state of it can be read by
    bytes_per_token: float  # over all layers, with what companions add

    @property
    def fmt(self) -> str:
        """Form of its rows: what kernels and selectors must be able to read."""
        ...

    @property
    def buffers(self) -> Sequence[Array] | None:
        """Each layer's pages, if the native kernels may read them; None: only through this store."""
        ...

    @property
    def bare(self) -> bool:
        """Whether the native kernels may write its buffers too."""
        ...

    def suit(self, prefers: KVFormat) -> None:
        """Lie as a selector that prefers this form reads fastest, in as many bits as before. Before ``alloc``."""
        ...

    def attach(self, companion: Companion) -> None:
        """Keep this beside every page. Before ``alloc``."""
        ...

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        """Reserve room for ``pages`` pages."""
        ...

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        """Store new rows. rows (T,) int64; k, v (T, Hkv, D) float32."""
        ...

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        """Rows as stored, dequantised: two (n, Hkv, D) float32."""
        ...

    def attend(
        self,
        layer: int,
        q: Array,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        """Softmax attention of q (T, H, D) over the stored rows into out (T, H, D); see ``Ops.attend`` for the rest."""
        ...

    @property
    def passive(self) -> bool:
        """Whether rows stay as they are written: then ``settle``, ``seal``, ``span``, ``words`` and ``shareable`` are
        not asked."""
        ...

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Where it keeps rows in other forms than its own pages, by name; after ``alloc``."""
        ...

    def settle(self, stream: Stream) -> Mapping[str, Lease] | None:
        """What a stream that is let in will need of these, by their names; None: there is no room yet."""
        ...

    @property
    def rooms(self) -> Rooms | None:
        """Who gives pages room to be written in; None: all have it."""
        ...

    def seal(self, stream: Stream, upto: int) -> None:
        """Rows of this stream below ``upto`` are final: they may be compressed or moved. Called after every step that
        absorbed rows."""
        ...

    def span(self, stream: Stream) -> int:
        """How many units may come in one step: up to where ``seal`` acts. It depends on positions alone, so that what
        rows see does not depend on chunks."""
        ...

    def words(self, tokens: Array) -> Array:
        """What stands for tokens (n,) int32 where cached beginnings are looked up: a page may depend on tokens behind
        it."""
        ...

    def shareable(self, stream: Stream, units: int) -> int:
        """How many of the first ``units`` have rows that any prompt with the same beginning has, and may share."""
        ...

    def copy_page(self, src: int, dst: int) -> None:
        """Copy all layers of one page: copy-on-write."""
        ...

    def pack(self, pages: Sequence[int]) -> Array:
        """The bytes of some pages: uint8 (len(pages), bytes)."""
        ...

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        """Write back what ``pack`` gave."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """One layer's cache as the rows of a batch look at it."""

    layer: int
    store: KVStore
    ops: Ops
    b: Batch
    lo: Array  # (T,) int32: as Batch.lo, within the layer's own window
    scale: float

    @property
    def pages(self) -> Array:
        """This layer's pages (pages, Hkv, bytes), of a store that shows them."""
        assert self.store.buffers is not None
        return self.store.buffers[self.layer]


class Selection(Protocol):
    """What rows attend to instead of everything."""

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        """q (T, H, D) -> out (T, H, D), lse (T, H), for all rows of the batch."""
        ...


class Selector(Protocol):
    """Slot ``select``: what each row attends to, layer by layer."""

    reads: frozenset[str]  # forms of rows (``KVStore.fmt``) that it and its selections can read
    prefers: KVFormat  # of these, where the user leaves the choice
    exact: bool  # rows that a stream absorbs one by one are the same as if they had come with its prompt

    @property
    def companion(self) -> Companion | None:
        """What it keeps beside the pages."""
        ...

    def select(self, view: View, q: Array) -> Selection | None:
        """For q (T, H, D), rotated, whose own keys are written already; None: everything."""
        ...


@runtime_checkable
class Unbroken(Protocol):
    """A selector that can act in all layers of a batch without coming back to Python between them."""

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        """What ``fused`` (see ``nn.fused``) calls in every layer, to the same bits as by ``select``; None: not now.

        No layer has a window."""
        ...


class Kernel(Protocol):
    """Slot ``kernel``: how attention is computed."""

    reads: frozenset[str]  # forms of rows that it can read

    def __call__(self, view: View, q: Array, selection: Selection | None, out: Array, lse: Array | None) -> None:
        """q (T, H, D) -> out (T, H, D) and, if wanted, lse (T, H): the log of the sum of exponentials."""
        ...


class Probe(Protocol):
    """Slot ``probe``: looks on while a layer attends."""

    def need(self, layer: int, b: Batch) -> bool:
        """Whether it wants to see this layer of this batch, which costs lse."""
        ...

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        """q, out (T, H, D); lse (T, H)."""
        ...


class Refresher(Protocol):
    """Slot ``refresh``: which units of a stream are computed again."""

    def rows(self, stream: Stream) -> int:
        """How many of its last absorbed units are to be absorbed again as a prompt's would be; mostly 0."""
        ...


class Evictor(Protocol):
    """Slot ``evict``: which of a stream's rows stay in reach, given how much attention each has had."""

    def keep(self, scores: Array) -> Array:
        """scores (Hkv, n) -> positions (Hkv, k) int32, ascending, padded with -1."""
        ...


class Ingest(Protocol):
    """Slot ``ingest``: in what pieces streams take in what they are given."""

    @property
    def block(self) -> int:
        """Whole blocks of so many units, counted from a stream's start; what is left over at its end is one piece."""
        ...


@runtime_checkable
class Revocable(Protocol):
    """A policy that sees a stream's rows, and may be used where some of them are guesses."""

    revocable: bool  # rows that are taken back leave no trace, and rows that come together are as if one by one


@runtime_checkable
class Punctual(Protocol):
    """A policy that acts at certain positions of a stream, on tokens that must be sure."""

    def span(self, stream: Stream) -> int:
        """How many of its units may come in one step if all but the first may be guesses."""
        ...


class CostModel(Protocol):
    """Predicted seconds of a step: the one currency of all scheduling."""

    @property
    def coefficients(self) -> Sequence[float]:
        """Seconds of a step, roughly: its base, of a unit, of a thousand units of context, of a thousand of work."""
        ...

    def predict(self, grants: Sequence[Grant]) -> float:
        """Seconds that a batch of these grants will take."""
        ...

    def promise(self, grants: Sequence[Grant]) -> float:
        """Seconds within which all but a few such batches end."""
        ...

    def rising(self, grants: Sequence[Grant], most: int) -> Array:
        """The same with 0 to ``most`` more units of the first of them: (most + 1,)."""
        ...

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """Take in a measured step."""
        ...

    @property
    def worst(self) -> float:
        """How many times as long as predicted all but a few of the larger steps take: for who promises times."""
        ...


class Composer(Protocol):
    """Slot ``compose``: which asks run in this step, and how much of each."""

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        """Grants for a step that should end within ``seconds`` (may be infinite). Never empty if asks is not."""
        ...


@runtime_checkable
class Budgeted(Protocol):
    """A composer that keeps to times: what steps cost is measured before anybody waits, and told to it."""

    def settle(self, cost: CostModel, streams: int, context: int) -> None:
        """``cost`` has seen steps with prompts and without; so many streams may run, of so many units.

        Raises:
            UserError: its times cannot be kept here.
        """
        ...


class Candidate(Protocol):
    """A service as the dispatcher sees it."""

    name: str
    cost: CostModel

    def asks(self) -> Sequence[Ask]: ...

    def forecasts(self) -> Sequence[Owed]: ...


class Dispatcher(Protocol):
    """Slot ``dispatch``: which service runs next, and for how long it may."""

    def next(self, services: Sequence[Candidate], now: float) -> tuple[int, Sequence[Ask], float] | None:
        """(index of the service, its asks, seconds it may take), or None when nobody asks."""
        ...
