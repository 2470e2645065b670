"""The slots: the closed list of places where a policy may act, and the Protocols of those in use.

``SLOTS`` says of each slot whether a service holds exactly one policy there or a chain of several. A slot's Protocol is
written when its second user comes; until then the name is reserved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from diastole.types import Array, Ask, Grant, KVFormat, PagedSpec

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

SLOTS: dict[str, Literal["single", "chain"]] = {
    "kv": "single",
    "evict": "single",
    "select": "single",
    "kernel": "single",
    "probe": "chain",
    "refresh": "single",
    "absorb": "chain",
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


class KVStore(Protocol):
    """Slot ``kv``: how key and value rows are kept. Allocated once per service, before the first write."""

    layout: str  # what kernels must be able to read
    bytes_per_token: float  # over all layers
    fmt: KVFormat  # number format of its rows

    @property
    def buffers(self) -> Sequence[Array] | None:
        """Each layer's pages, if the native kernels may read and write them directly; None: only through this store."""
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
        self, layer: int, q: Array, tables: Array, starts: Array, lo: Array, hi: Array, scale: float, out: Array
    ) -> None:
        """Softmax attention of q (T, H, D) over the stored rows into out (T, H, D); see ``Batch`` for the rest."""
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


class CostModel(Protocol):
    """Predicted seconds of a step: the one currency of all scheduling."""

    def predict(self, grants: Sequence[Grant]) -> float:
        """Seconds that a batch of these grants will take."""
        ...

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """Take in a measured step."""
        ...


class Composer(Protocol):
    """Slot ``compose``: which asks run in this step, and how much of each."""

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        """Grants for a step that should end within ``seconds`` (may be infinite). Never empty if asks is not."""
        ...


class Candidate(Protocol):
    """A service as the dispatcher sees it."""

    name: str
    cost: CostModel

    def asks(self) -> Sequence[Ask]: ...

    def forecasts(self) -> Sequence[float]: ...


class Dispatcher(Protocol):
    """Slot ``dispatch``: which service runs next, and for how long it may."""

    def next(self, services: Sequence[Candidate], now: float) -> tuple[int, Sequence[Ask], float] | None:
        """(index of the service, its asks, seconds it may take), or None when nobody asks."""
        ...
