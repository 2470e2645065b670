"""SnapKV: the last rows of a prompt choose once what all output attends to. The baseline of choosing by the prompt.

Li et al.: "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469, with
everything still stored, so that it can be compared with policies that choose again. Its smoothing over neighbours is
left out, and heads that share a key choose together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.selection import Decoding, Tokens, decoding
from diastole.slots import Facts, View
from diastole.types import Array, KVFormat, Stream, UserError

NEEDS = frozenset({"paged_kv"})
_NOTE = "snapkv"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    budget: int = 1024  # tokens of the prompt that a layer attends to while decoding, sink and window among them
    window: int = 32  # last tokens of a prompt, which choose and are attended to
    sink: int = 4  # first tokens, always attended to
    dense_below: int = 1024  # tokens of a prompt under which everything is attended to


@dataclass(slots=True)
class Memory:
    """What a prompt's last rows asked for and chose."""

    queries: Array  # (layers, window, H, D) float32, a ring by position
    known: Array  # (window,) int32: the position that each holds, -1: none
    places: list[Array]  # of each layer: (Hkv, k) int32


class Snap:
    """Slot ``select``."""

    reads = frozenset({"f32", "bf16", "int8", "rows"})
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, p: Params, facts: Facts) -> None:
        if p.window < 1 or p.sink < 0 or p.budget < p.sink + p.window:
            raise UserError("snapkv: budget must hold sink and window, and window is at least 1", param="use")
        self.p, self.facts = p, facts

    def select(self, view: View, q: Array) -> Tokens | None:
        b = view.b
        for i, (stream, _) in enumerate(b.grants):
            rows = np.arange(b.starts[i], b.starts[i + 1])
            last = rows[(b.pos[rows] < stream.given) & (b.pos[rows] >= stream.given - self.p.window)]
            if len(last):
                memory, at = self._memory(stream), b.pos[last] % self.p.window
                memory.queries[view.layer, at], memory.known[at] = q[last], b.pos[last]
                memory.places[view.layer] = np.empty((0, 0), np.int32)
        rows_ = decoding(b, max(self.p.dense_below, 1))
        return None if rows_ is None else self._tokens(view, rows_)

    def _memory(self, stream: Stream) -> Memory:
        f, none = self.facts, np.empty((0, 0), np.int32)
        if _NOTE not in stream.scratch:
            queries = np.zeros((f.layers, self.p.window, f.heads, f.head_dim), np.float32)
            stream.scratch[_NOTE] = Memory(queries, np.full(self.p.window, -1, np.int32), [none] * f.layers)
        memory: Memory = stream.scratch[_NOTE]
        return memory

    def _tokens(self, view: View, rows: Decoding) -> Tokens | None:
        chosen = []
        for i, own in enumerate(rows.owner):
            stream = view.b.grants[own].stream
            places = self._places(view, rows, i, stream)
            since = np.arange(stream.given, int(rows.hi[i]), dtype=np.int32)
            chosen.append(np.concatenate([places, np.broadcast_to(since, (len(places), len(since)))], axis=1))
        width = max(x.shape[1] for x in chosen)
        at = np.stack([np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in chosen])
        counts = np.array([[x.shape[1]] * len(x) for x in chosen], np.int32)
        return Tokens(rows.which, rows.cache_rows(at), counts)

    def _places(self, view: View, rows: Decoding, i: int, stream: Stream) -> Array:
        """What a stream's prompt chose in this layer: (Hkv, k)."""
        memory, given = self._memory(stream), stream.given
        if memory.places[view.layer].size:
            return memory.places[view.layer]
        own = np.flatnonzero(memory.known >= 0)
        scores = np.zeros((1, self.facts.kv_heads, given), np.float32)
        if len(own):  # else the prompt was not absorbed here
            hi, starts = memory.known[own] + 1, np.array([0, len(own)], np.int32)
            q, table = memory.queries[view.layer, own], rows.tables[i : i + 1]
            lo = np.zeros_like(hi)
            view.ops.masses(q, view.pages, view.store.fmt, table, starts, lo, hi, view.scale, scores)
        scores[..., : self.p.sink] = scores[..., max(given - self.p.window, 0) :] = np.inf
        counts = np.full(self.facts.kv_heads, min(self.p.budget, given), np.int32)
        places = np.empty((len(counts), int(counts[0])), np.int32)
        view.ops.tops(scores[0], counts, places, counts)
        memory.places[view.layer] = places
        return places


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"select": Snap(p, facts)}
