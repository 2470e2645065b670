"""Lease: ownership of state, which ends by construction. Blob: the one form in which state travels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from diastole.types import Array, UserError


class Pool(Protocol):
    """Where leases come from. One verb set for pages and cells."""

    def grow(self, lease: Lease, units: int) -> bool:
        """Make rows ``lease.units .. units`` writable; False, and nothing changed, when there is no room."""
        ...

    def truncate(self, lease: Lease, units: int) -> None:
        """Roll back to the first ``units`` units."""
        ...

    def fork(self, lease: Lease) -> Lease | None:
        """A second owner of the same state, copied on write; None when there is no room."""
        ...

    def pack(self, lease: Lease) -> Blob:
        """The state as bytes, for swap, migration and save."""
        ...

    def unpack(self, blob: Blob) -> Lease | None:
        """A new lease holding what was packed; None when there is no room."""
        ...

    def close(self, lease: Lease) -> None:
        """Give everything back."""
        ...

    def check(self, leases: Collection[Lease], fail: Callable[[str], None]) -> None:
        """Compare what is held with the leases that there are; call ``fail`` with each difference."""
        ...


@runtime_checkable
class Trusting(Protocol):
    """A pool whose packed state may come from outside."""

    def vet(self, blob: Blob, known: int) -> None:
        """Look at the state of a stream that knows so many units.

        Raises:
            UserError: no pool like this one has packed it.
        """
        ...


class Lease:
    """The right to some places of one pool. Close it, or use it as a context manager; closing twice is harmless."""

    __slots__ = ("closed", "node", "places", "pool", "published", "units")

    def __init__(self, pool: Pool, places: list[int], units: int) -> None:
        self.pool = pool
        self.places = places  # page ids in order, or the one cell id
        self.units = units  # units whose state is held
        self.closed = False
        self.published = 0  # leading pages that the prefix cache knows
        self.node: Any = None  # where in the prefix cache they end

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.pool.close(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Blob:
    """Packed state: ``layout`` says who may unpack it."""

    layout: str
    units: int
    data: dict[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.data.values())

    def expect(self, layout: str) -> None:
        """Raises:
        UserError: this blob was packed by a pool of another layout.
        """
        if self.layout != layout:
            raise UserError(
                f"packed state has layout {self.layout!r}, this pool reads {layout!r}", code="layout_mismatch"
            )
