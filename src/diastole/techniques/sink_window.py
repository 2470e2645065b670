"""Sink and window: while decoding, the first tokens and the latest are attended to, nothing else. The plain baseline.

What StreamingLLM keeps (Xiao et al., ICLR 2024, arXiv 2309.17453), at the tokens' own positions and with the rest still
stored, so that it can be compared with policies that choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.selection import Tokens, decoding
from diastole.slots import Facts, View
from diastole.types import Array, KVFormat, UserError

NEEDS = frozenset({"paged_kv"})
_NOTE = "sink_window"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    budget: int = 512  # tokens that a layer attends to while decoding
    sink: int = 4  # of them the first ones; the others are the latest
    dense_layers: int = 2  # first layers, which attend to everything
    dense_below: int = 1024  # tokens of a context under which everything is attended to


class SinkWindow:
    """Slot ``select``."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    revocable = True
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, p: Params, facts: Facts) -> None:
        if not 0 <= p.sink < p.budget:
            raise UserError("sink-window: sink must be at least 0 and less than budget", param="use")
        self.p, self._sets = p, facts.kv_heads

    def select(self, view: View, q: Array) -> Tokens | None:
        rows = decoding(view.b, max(self.p.dense_below, self.p.budget + 1))
        if rows is None or view.layer < self.p.dense_layers:
            return None
        if _NOTE not in view.b.notes:  # the same for all layers
            counts = np.minimum(rows.hi, self.p.budget).astype(np.int32)
            places = np.arange(self.p.budget, dtype=np.int32) + np.zeros((len(counts), 1), np.int32)
            places[:, self.p.sink :] += (rows.hi - counts)[:, None]
            places = np.minimum(places, rows.hi[:, None] - 1)  # behind counts, where the budget is not used up
            at = rows.cache_rows(np.repeat(places[:, None], self._sets, 1))
            view.b.notes[_NOTE] = Tokens(rows.which, at, np.repeat(counts[:, None], self._sets, 1))
        chosen: Tokens = view.b.notes[_NOTE]
        return chosen


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"select": SinkWindow(p, facts)}
