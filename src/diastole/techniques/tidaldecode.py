"""TidalDecode: two layers choose which tokens matter, the layers after them attend to these alone.

Yang, Zhang, Chen, Li, Jia: "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
ICLR 2025, arXiv 2410.05076. While decoding, the layers before the first selection layer and the selection layers
themselves attend to everything; a selection layer takes the ``budget`` tokens with the largest scores, and the layers
up to the next one attend to those. Prompts are absorbed densely; every ``correct_every`` tokens a stream's own rows
are computed again as a prompt's would be. It needs nothing but a paged cache.

Ours: the query heads that share a key choose together, by the largest weight that any of them gives (the reference
knows no grouped queries); the first tokens and the latest are always in; by default more than two layers choose,
because in a small model two lose too much (``diastole reproduce tidaldecode``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.selection import Decoding, Tokens, decoding, largest, nobody, weights
from diastole.slots import NO_END, Facts, KVStore, View
from diastole.types import Array, Batch, KVFormat, Stream, UserError

NEEDS = frozenset({"paged_kv"})
_NOTE = "tidaldecode"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    budget: int = 512  # tokens that a sparse layer attends to, sink and recent ones among them
    layers: str = "auto"  # that choose, as in 2+13; those before the first are dense; auto: 2, and every fifth after it
    sink: int = 4  # first tokens, always attended to
    recent: int = 16  # latest tokens, always attended to
    share: str = "group"  # who chooses together: heads that share a key ("group"), nobody ("head"), all ("layer")
    correct_every: int = 64  # tokens after which a stream's own rows are computed again densely; 0: never
    dense_below: int = 1024  # tokens of a context under which everything is attended to


class Tidal:
    """Slots ``select``, ``probe`` and ``refresh``; an ``Unbroken`` too."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    revocable = True
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, p: Params, facts: Facts) -> None:
        self.p, self.facts = p, facts
        self._native: Any = None  # see ``between``
        self.chosen_by = _layers(p.layers, facts.layers)
        if p.budget < p.sink + p.recent or p.recent < 1 or p.sink < 0:
            raise _wrong("budget", "must hold sink and recent, and recent is at least 1")
        if p.share not in {"group", "head", "layer"}:
            raise _wrong("share", "must be group, head or layer")
        if p.correct_every < 0:
            raise _wrong("correct_every", "must not be negative")
        if facts.windowed:
            raise _wrong(
                "layers", "fits no model whose layers see a window only: what one chooses is not there for others"
            )
        self.sets = facts.heads if p.share == "head" else facts.kv_heads

    def _rows(self, b: Batch) -> Decoding | None:
        return decoding(b, max(self.p.dense_below, self.p.budget + 1))

    def select(self, view: View, q: Array) -> Tokens | None:
        """What the last selection layer chose; None in selection layers and before them."""
        if view.layer in self.chosen_by:
            view.b.notes.pop(_NOTE, None)
        chosen: Tokens | None = view.b.notes.get(_NOTE)
        return chosen

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        """Heads that share a key choose together there."""
        if self.p.share != "group":
            return None
        if self._native is None:
            f, chooses = self.facts, [layer in self.chosen_by for layer in range(self.facts.layers)]
            self._native = fused.ByScores(kv.buffers, kv.fmt, f.heads, f.head_dim, scale, chooses)
        p, rows = self.p, self._rows(b) or nobody(b)
        most = np.full(len(rows.which), p.budget, np.int32)
        self._native.batch(
            b.rows, b.tables, b.starts, b.lo, b.hi,
            rows.which, rows.tables, rows.lo, rows.hi, most, p.sink, p.recent,
        )  # fmt: skip
        return self._native

    def need(self, layer: int, b: Batch) -> bool:
        return layer in self.chosen_by and self._rows(b) is not None

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        """Choose for the layers that follow."""
        rows = self._rows(view.b)
        assert rows is not None
        found = weights(view, q, rows, self.sets, lse)
        if self.p.share == "layer":
            found = np.repeat(found.max(1, keepdims=True), self.sets, 1)
        view.b.notes[_NOTE] = largest(view, rows, found, self.p.budget, self.p.sink, self.p.recent)

    def rows(self, stream: Stream) -> int:
        """How many of a stream's last rows are to be computed again: all of its own once there are enough of them."""
        own = stream.done - stream.given
        return own if 0 < self.p.correct_every <= own else 0

    def span(self, stream: Stream) -> int:
        """Up to where its rows are computed again."""
        own = stream.done - stream.given
        return self.p.correct_every - own if self.p.correct_every and own >= 0 else NO_END


def _layers(text: str, layers: int) -> frozenset[int]:
    if text == "auto":
        return frozenset(range(2, layers, 5)) or frozenset({0})
    try:
        found = [int(part) for part in text.split("+")]
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or not 0 <= found[0] <= found[-1] < layers:
        raise _wrong("layers", f"must be auto, or layers in order such as 2+13, each below {layers}, not {text!r:.40}")
    return frozenset(found)


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"tidaldecode: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    tidal = Tidal(p, facts)
    return {"select": tidal, "probe": tidal, "refresh": tidal}
