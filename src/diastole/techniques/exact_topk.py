"""Exact top-k: every layer attends to the tokens of its own largest weights. The bound for whoever guesses them.

No saving: all keys are read to choose. It shows what a budget of tokens can do at best, beside TidalDecode, Double
Sparsity and others, which choose by less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.selection import Tokens, decoding, largest, weights
from diastole.slots import Facts, View
from diastole.types import Array, KVFormat, UserError

NEEDS = frozenset({"paged_kv"})


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    budget: int = 512  # tokens that a layer attends to while decoding, sink and recent ones among them
    dense_layers: int = 2  # first layers, which attend to everything
    sink: int = 4  # first tokens, always attended to
    recent: int = 16  # latest tokens, always attended to
    dense_below: int = 1024  # tokens of a context under which everything is attended to


class Exact:
    """Slot ``select``."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    revocable = True
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, p: Params, facts: Facts) -> None:
        if p.budget < p.sink + p.recent or p.recent < 1 or p.sink < 0:
            raise UserError("exact-topk: budget must hold sink and recent, and recent is at least 1", param="use")
        self.p, self._sets = p, facts.kv_heads

    def select(self, view: View, q: Array) -> Tokens | None:
        rows = decoding(view.b, max(self.p.dense_below, self.p.budget + 1))
        if rows is None or view.layer < self.p.dense_layers:
            return None
        s = weights(view, q, rows, q.shape[1], None)
        most = s.max(2, keepdims=True)
        s -= most + np.log(np.exp(s - most).sum(2, keepdims=True))
        together = s.reshape(len(s), self._sets, -1, s.shape[2]).max(2)
        return largest(view, rows, together, self.p.budget, self.p.sink, self.p.recent)


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"select": Exact(p, facts)}
