"""Cells: zeroed when leased, restored by snapshots, packed and forked whole."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.state.cells import CellPool
from diastole.types import CellSpec, UserError


def pool(cells: int = 3) -> CellPool:
    return CellPool({"a": CellSpec((4,)), "b": CellSpec((2, 2), "int64")}, cells)


def test_a_fresh_cell_is_zero_also_after_reuse() -> None:
    p = pool(1)
    with p.lease() as lease:  # type: ignore[union-attr]
        p.arrays["a"][lease.places[0]] = 5
        assert p.lease() is None
    again = p.lease()
    assert again is not None
    assert not p.arrays["a"][again.places[0]].any()


def test_truncate_restores_the_snapshot_and_only_that() -> None:
    p = pool()
    lease = p.lease()
    assert lease is not None
    for units in (2, 4, 6):
        p.arrays["a"][lease.places[0]] = units
        p.grow(lease, units)
        p.snapshot(lease)
    p.truncate(lease, 4)
    assert p.arrays["a"][lease.places[0]].tolist() == [4] * 4
    assert lease.units == 4
    with pytest.raises(LookupError):
        p.truncate(lease, 3)
    with pytest.raises(LookupError):
        p.truncate(lease, 6)


def test_pack_and_fork_copy() -> None:
    p = pool()
    lease = p.lease()
    assert lease is not None
    p.arrays["b"][lease.places[0]] = 7
    p.grow(lease, 9)
    twin, blob = p.fork(lease), p.pack(lease)
    p.arrays["b"][lease.places[0]] = 8
    assert twin is not None
    back = p.unpack(blob)
    assert back is not None
    for copy in (twin, back):
        assert p.arrays["b"][copy.places[0]].tolist() == [[7, 7], [7, 7]]
        assert copy.units == 9
    assert p.unpack(blob) is None  # full
    for x in (lease, twin, back, back):
        x.close()
    assert p.used == 0


def test_foreign_blobs_are_refused() -> None:
    from diastole.state.lease import Blob

    with pytest.raises(UserError, match="layout"):
        pool().unpack(Blob("pages", 1, {"a": np.zeros(4)}))


def test_what_is_held_is_compared_with_the_leases_that_there_are() -> None:
    p = pool()
    lease, lost = p.lease(), p.lease()
    assert lease is not None
    assert lost is not None
    p.snapshot(lost)
    wrong: list[str] = []
    p.check([lease, lost], wrong.append)
    assert wrong == []
    p.check([lease], wrong.append)
    assert len(wrong) == 2
    assert "of 3" in wrong[0]
    assert "snapshots are kept of cells [1]" in wrong[1]
