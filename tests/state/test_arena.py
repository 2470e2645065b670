"""Arrays of all layers: apart where the system gives memory in large pages, and nobody's bytes another's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diastole.kernels.table import load
from diastole.state.arena import HUGE, layered
from diastole.types import Array


def place(a: Array) -> int:
    return int(a.__array_interface__["data"][0])


@pytest.mark.parametrize(("layers", "shape"), [(30, (64, 3, 16384)), (7, (43, 49171)), (1, (2, HUGE)), (600, (HUGE,))])
def test_large_pages_begin_at_other_places_in_each_layer(layers: int, shape: tuple[int, ...]) -> None:
    arrays = layered(load(1), layers, shape)
    assert [a.shape for a in arrays] == [shape] * layers
    places = [place(a) for a in arrays]
    assert all(b - a >= arrays[0].nbytes for a, b in pairwise(places))
    offsets = sorted(p % HUGE for p in places)
    gaps = np.diff([*offsets, offsets[0] + HUGE])
    assert gaps.min() >= 0.95 * HUGE / layers - 4096
    assert gaps.max() <= 2 * HUGE / layers + 4096


def test_small_ones_lie_side_by_side() -> None:
    arrays = layered(load(1), 5, (3, 50))
    assert np.diff([place(a) for a in arrays]).tolist() == [192] * 4  # 150 bytes, in whole lines
    for i, a in enumerate(arrays):
        a[:] = i
    assert [int(a.sum()) for a in arrays] == [150 * i for i in range(5)]


def test_no_layers_need_nothing() -> None:
    assert layered(load(1), 0, (3, 50)) == []
