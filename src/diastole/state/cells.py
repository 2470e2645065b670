"""CellPool: state of fixed size per stream (convolution tails, recurrent state), with the same verbs as pages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from diastole.state.lease import Blob, Lease
from diastole.types import Array, CellSpec


class CellPool:
    """``cells`` cells, each holding one array per spec. A fresh cell is zero.

    ``arrays[name]`` is (cells, *shape); a model indexes it with the cell ids of its batch.
    """

    layout = "cells"

    def __init__(self, specs: Mapping[str, CellSpec], cells: int) -> None:
        self.cells = cells
        self.arrays: dict[str, Array] = {k: np.zeros((cells, *s.shape), s.dtype) for k, s in specs.items()}
        self._free = list(range(cells - 1, -1, -1))
        self._snapshots: dict[int, dict[int, dict[str, Array]]] = {}  # cell -> units -> state then

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.cells - len(self._free)

    def lease(self) -> Lease | None:
        """A zeroed cell; None when all are taken."""
        if not self._free:
            return None
        cell = self._free.pop()
        for array in self.arrays.values():
            array[cell] = 0
        return Lease(self, [cell], 0)

    def clear(self, lease: Lease) -> None:
        """Begin anew: zero."""
        for array in self.arrays.values():
            array[lease.places[0]] = 0

    def grow(self, lease: Lease, units: int) -> bool:
        lease.units = max(lease.units, units)  # a cell holds any number of units
        return True

    def snapshot(self, lease: Lease) -> None:
        """Remember the state at ``lease.units``, so that ``truncate`` can return to it."""
        cell = lease.places[0]
        self._snapshots.setdefault(cell, {})[lease.units] = {k: a[cell].copy() for k, a in self.arrays.items()}

    def truncate(self, lease: Lease, units: int) -> None:
        """Return to the snapshot taken at ``units``; later snapshots are dropped.

        Raises:
            LookupError: no snapshot was taken there.
        """
        if units == lease.units:
            return
        cell = lease.places[0]
        taken = self._snapshots.get(cell, {})
        if units not in taken:
            raise LookupError(f"no snapshot at {units} units; there are {sorted(taken)}")
        for name, array in self.arrays.items():
            array[cell] = taken[units][name]
        self._snapshots[cell] = {at: state for at, state in taken.items() if at <= units}
        lease.units = units

    def fork(self, lease: Lease) -> Lease | None:
        twin = self.lease()
        if twin is not None:
            for array in self.arrays.values():
                array[twin.places[0]] = array[lease.places[0]]
            twin.units = lease.units
        return twin

    def pack(self, lease: Lease) -> Blob:
        return Blob(self.layout, lease.units, {k: a[lease.places[0]].copy() for k, a in self.arrays.items()})

    def unpack(self, blob: Blob) -> Lease | None:
        blob.expect(self.layout)
        lease = self.lease()
        if lease is not None:
            for name, array in self.arrays.items():
                array[lease.places[0]] = blob.data[name]
            lease.units = blob.units
        return lease

    def close(self, lease: Lease) -> None:
        self._snapshots.pop(lease.places[0], None)
        self._free.append(lease.places.pop())
        lease.units = 0

    def check(self, leases: Collection[Lease], fail: Callable[[str], None]) -> None:
        """Compare what is held with the leases that there are; call ``fail`` with each difference."""
        held = sorted(cell for lease in leases for cell in lease.places)
        if sorted(self._free + held) != list(range(self.cells)):
            fail(f"cells {held} are held and {sorted(self._free)} free, of {self.cells}")
        if stale := self._snapshots.keys() - set(held):
            fail(f"snapshots are kept of cells {sorted(stale)}, which nobody holds")
