"""Looking into the layers of a rig: what they were asked, and asking them the same again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diastole.bench.rig import Rig
from diastole.nn.arena import Arena
from diastole.nn.inside import Inside
from diastole.slots import KVStore, View
from diastole.types import Array, Batch


@dataclass(slots=True)
class Watch:
    """Slot ``probe``: keeps every layer's view, queries and result of the last step."""

    seen: dict[int, tuple[View, Array, Array]] = field(default_factory=dict)

    def need(self, layer: int, b: Batch) -> bool:
        return len(b.pos) == 1

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        self.seen[view.layer] = view, q.copy(), out.copy()


class Recorded:
    """A decode step's attention in all layers, as it came, to be computed again."""

    def __init__(self, rig: Rig) -> None:
        self._acts: Inside = rig.service.state["inside"]
        self._calls: list[tuple[View, Array]] = []
        self._arena = Arena()

    @property
    def idle(self) -> bool:
        return False

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> None:
        """Layer by layer, to be seen."""

    def attend(self, view: View, q: Array, out: Array, arena: Arena) -> None:
        self._calls.append((view, q.copy()))
        self._acts.attend(view, q, out, arena)

    def again(self) -> None:
        """Everything between a layer's rotation and its last projection, but for the writing of the new row."""
        for view, q in self._calls:
            if view.layer == 0:
                view.b.notes.clear()
            self._acts.attend(view, q, np.empty_like(q), self._arena)


@contextmanager
def inside(rig: Rig, acts: Inside) -> Iterator[None]:
    """While inside, this acts within the layers of a rig."""
    before = rig.service
    rig.service = replace(before, state={**before.state, "inside": acts})
    try:
        yield
    finally:
        rig.service = before
