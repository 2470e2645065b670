"""SnapKV, a baseline: the last rows of a prompt choose once what all output attends to.

Li et al.: "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469, with
everything still stored. Its smoothing over neighbours is left out, and heads that share a key choose together. It is no
technique to serve with: a prompt that is found in the prefix cache would have no last rows that could choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from diastole.bench.rig import Rig
from diastole.nn.inside import Inside
from diastole.nn.selection import Decoding, Tokens, decoding
from diastole.slots import View
from diastole.types import Array, KVFormat, PagedSpec, Stream

_NOTE = "snapkv"


@dataclass(slots=True)
class Memory:
    """What a prompt's last rows asked for and chose."""

    queries: Array  # (layers, window, H, D) float32, a ring by position
    known: Array  # (window,) int32: the position that each holds, -1: none
    places: list[Array]  # of each layer: (Hkv, k) int32


class Snap:
    """Slot ``select``: each layer attends to ``budget`` tokens of a prompt, with the first ``sink`` and the ``window``
    last ones, which choose, and to all output."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, spec: PagedSpec, budget: int, window: int = 32, sink: int = 4) -> None:
        self.spec, self.budget, self.window, self.sink = spec, budget, window, sink

    def select(self, view: View, q: Array) -> Tokens | None:
        b = view.b
        for i, (stream, _) in enumerate(b.grants):
            rows = np.arange(b.starts[i], b.starts[i + 1])
            last = rows[(b.pos[rows] < stream.given) & (b.pos[rows] >= stream.given - self.window)]
            if len(last):
                memory, at = self._memory(stream, q.shape[1]), b.pos[last] % self.window
                memory.queries[view.layer, at], memory.known[at] = q[last], b.pos[last]
                memory.places[view.layer] = np.empty((0, 0), np.int32)
        own = decoding(b, 1)
        return None if own is None else self._tokens(view, own)

    def _memory(self, stream: Stream, heads: int) -> Memory:
        if _NOTE not in stream.scratch:
            queries = np.zeros((self.spec.layers, self.window, heads, self.spec.head_dim), np.float32)
            none = np.empty((0, 0), np.int32)
            stream.scratch[_NOTE] = Memory(queries, np.full(self.window, -1, np.int32), [none] * self.spec.layers)
        memory: Memory = stream.scratch[_NOTE]
        return memory

    def _tokens(self, view: View, rows: Decoding) -> Tokens:
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
        memory: Memory = stream.scratch[_NOTE]
        given = stream.given
        if memory.places[view.layer].size:
            return memory.places[view.layer]
        own = np.flatnonzero(memory.known >= 0)
        scores = np.zeros((1, self.spec.kv_heads, given), np.float32)
        hi, starts = memory.known[own] + 1, np.array([0, len(own)], np.int32)
        q, table = memory.queries[view.layer, own], rows.tables[i : i + 1]
        view.ops.masses(q, view.pages, view.store.fmt, table, starts, np.zeros_like(hi), hi, view.scale, scores)
        scores[..., : self.sink] = scores[..., max(given - self.window, 0) :] = np.inf
        counts = np.full(self.spec.kv_heads, min(self.budget, given), np.int32)
        places = np.empty((len(counts), int(counts[0])), np.int32)
        view.ops.tops(scores[0], counts, places, counts)
        memory.places[view.layer] = places
        return places


@contextmanager
def snapkv(rig: Rig, budget: int) -> Iterator[Rig]:
    """While inside, a rig that carries another selector for output decodes with this one."""
    state = rig.service.state
    rig.service.state = {**state, "inside": Inside(Snap(rig.spec, budget))}
    try:
        yield rig
    finally:
        rig.service.state = state
