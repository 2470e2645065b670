"""ShadowKV: a prompt's keys in low rank, its values at a distance; what matters is rebuilt and fetched token by token.

Sun, Chang, Bao, Zheng, Zheng, Liu, Dong, Chi, Chen: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context
LLM Inference", ICML 2025, arXiv 2410.21465. When a prompt has been read, its keys before rotation are factorised and
its values moved to the cold tier; of every chunk of 8 tokens a landmark stays, the mean of its rotated keys, and the
chunks that their landmark tells least about stay exact. A decoding token looks at all landmarks, chooses
``sparse_budget`` tokens of chunks for each key/value head, rebuilds their keys and fetches their values, and attends to
them, to the exact chunks and to all that came after the prompt. It needs a paged cache and one rotary table.

Ours: keys are un-rotated from the stored rows in float32, and X^T X is added up while the prompt is read, so any
chunks give the same factors. A is kept in whole numbers of 16 bits, each column with its scale, which is more exact
than float16. Whole pages of 64 tokens are sealed, so up to 63 more tokens stay exact than ``local_chunks`` says. The
prefix cache keeps full pages of prompts as long as nobody needs their room; the factors belong to one prompt and are
shared by its choices alone. A prompt that the budget would cover anyway is attended to densely, and while a prompt is
read it is kept in full: that is the peak of its memory. What a stream says itself is never sealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from diastole.kernels.shadows import Shadowed
from diastole.slots import Facts, View
from diastole.state.pages import PAGE
from diastole.stores.cold import TIERS
from diastole.stores.shadow import CHUNK, RECORD, SEALED, ShadowKV, Shape
from diastole.types import Array, Batch, KVFormat, UserError

NEEDS = frozenset({"paged_kv"})
_NOTE = "shadowkv"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    rank: int = 48  # of the keys, all key/value heads side by side
    chunk: int = 8  # tokens that are chosen together; fixed
    sparse_budget: int = 512  # tokens of the prompt that each key/value head chooses
    outlier_chunks: int = 12  # chunks of the prompt that each key/value head keeps exact
    local_chunks: int = 4  # last chunks of the prompt that stay exact
    value_tier: str = "ram"  # where values lie: "ram", or "mmap" (a file in TMPDIR)
    pre_rope: bool = True  # keys are factorised before rotation; false: as they are stored
    stretch: int = 4  # sealed pages that there is room for, for each full page


@dataclass(frozen=True, slots=True)
class Wave:
    """Rows of a batch whose streams are sealed, of each stream one, and what they attend to in every layer."""

    rows: Shadowed
    at: Array  # (R, Hkv, K) int64: room for what is recalled, then what stays exact
    counts: Array  # (R, Hkv) int32: tokens of both


@dataclass(slots=True)
class Counted:
    """What recalling took, over all rows, layers and key/value heads."""

    chosen: int = 0  # chunks
    missed: int = 0  # of them not in the buffer, so rebuilt and fetched


class Recall:
    """Sealed rows attend to what is exact and what is recalled, the others to everything."""

    def __init__(self, b: Batch, store: ShadowKV, waves: list[Wave], counted: Counted) -> None:
        self._store, self._waves, self._counted = store, waves, counted
        sealed = np.concatenate([w.rows.which for w in waves])
        self._others = len(sealed) < len(b.hi)
        self._hi = b.hi.copy()
        self._hi[sealed] = 0  # these see nothing of full pages

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        b, store = view.b, self._store
        if self._others:
            store.attend(view.layer, q, b.tables, b.starts, view.lo, self._hi, view.scale, out, lse)
        state = store.shadows[view.layer]
        for wave in self._waves:
            missed, at = np.empty_like(wave.counts), wave.at
            view.ops.recall(q, state, wave.rows, view.scale, at, missed)
            view.ops.attend_tokens(q, state.buf, store.rows, wave.rows.which, at, wave.counts, view.scale, out, lse)
            self._counted.chosen += missed.size * store.shape.chunks
            self._counted.missed += int(missed.sum())


class Shadow:
    """Slot ``select``, over a store that it knows."""

    reads = frozenset({"shadow"})
    revocable = True
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, store: ShadowKV) -> None:
        self.store = store
        self.counted = Counted()

    def select(self, view: View, q: Array) -> Recall | None:
        """None where no row's stream is sealed."""
        b = view.b
        if _NOTE not in b.notes:
            waves = self._waves(b)
            b.notes[_NOTE] = Recall(b, self.store, waves, self.counted) if waves else None
        found: Recall | None = b.notes[_NOTE]
        return found

    def _waves(self, b: Batch) -> list[Wave]:
        """A stream has one buffer: its rows come one after the other, and no more streams at a time than buffers."""
        waiting = [
            range(int(b.starts[i]), int(b.starts[i + 1]))
            for i, (stream, _) in enumerate(b.grants)
            if self.store.is_sealed(stream)
        ]
        waves: list[Wave] = []
        for turn in count():
            rows = [own[turn] for own in waiting if turn < len(own)]
            if not rows:
                return waves
            each = self.store.records
            waves += [self._wave(b, rows[at : at + each]) for at in range(0, len(rows), each)]
        return waves

    def _wave(self, b: Batch, rows: list[int]) -> Wave:
        store, shape = self.store, self.store.shape
        owner = np.searchsorted(b.starts, rows, "right") - 1
        streams = [b.grants[i][0] for i in owner]
        places = [s.leases[SEALED].places for s in streams]
        records = [s.leases[RECORD].places[0] for s in streams]
        tables = np.zeros((len(rows), max(map(len, places))), np.int32)
        outlying, recalled = shape.outliers * CHUNK, shape.budget
        own = [np.arange(len(p) * PAGE, b.hi[row]) for p, row in zip(places, rows, strict=True)]
        most = recalled + outlying + max(map(len, own))
        at = np.zeros((len(rows), store.held[0].shape[1], most), np.int64)
        counts = np.empty(at.shape[:2], np.int32)
        for i, (table, record, after) in enumerate(zip(places, records, own, strict=True)):
            tables[i, : len(table)] = table
            first = store.first_outlier + record * shape.outlier_pages
            at[i, :, recalled : recalled + outlying] = np.arange(first * PAGE, first * PAGE + outlying)
            pages = b.tables[owner[i], after // PAGE].astype(np.int64)
            counts[i] = recalled + outlying + len(after)
            at[i, :, recalled + outlying : counts[i, 0]] = pages * PAGE + after % PAGE
        pages, buffers = (np.array(x, np.int32) for x in (list(map(len, places)), list(map(store.buffer, streams))))
        return Wave(Shadowed(np.array(rows, np.int32), tables, pages, np.array(records, np.int32), buffers), at, counts)


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"shadowkv: {knob} {what}", param="use")


def _check(p: Params, facts: Facts) -> None:
    width = facts.kv_heads * facts.head_dim
    if not 1 <= p.rank <= min(width, 1024):
        raise _wrong("rank", f"must be from 1 to {min(width, 1024)}, all keys of a token side by side")
    if p.chunk != CHUNK:
        raise _wrong("chunk", f"must be {CHUNK}: landmarks of other lengths are not built")
    if p.sparse_budget < CHUNK or p.sparse_budget % CHUNK:
        raise _wrong("sparse_budget", f"must be a multiple of {CHUNK}, and not 0")
    if p.outlier_chunks < 0:
        raise _wrong("outlier_chunks", "must not be negative")
    if p.local_chunks < 1:
        raise _wrong("local_chunks", "must be at least 1")
    if p.value_tier not in TIERS:
        raise _wrong("value_tier", f"must be one of {', '.join(TIERS)}")
    if not 1 <= p.stretch <= 64:
        raise _wrong("stretch", "must be from 1 to 64")
    if facts.windowed:
        raise _wrong("rank", "fits no model whose layers see a window only: these forget what it would keep")
    if facts.head_dim % 32:
        raise _wrong("chunk", f"needs heads of a multiple of 32 numbers for its landmarks, not {facts.head_dim}")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    _check(p, facts)
    if facts.rope is None:
        raise _wrong("pre_rope", "needs a model whose layers rotate by one table")
    rope = facts.rope
    if not p.pre_rope:  # then nothing is to be rotated back
        rope = np.zeros_like(facts.rope)
        rope[:, : rope.shape[1] // 2] = 1
    shape = Shape(p.rank, p.sparse_budget, p.outlier_chunks, p.local_chunks * CHUNK, p.stretch, p.value_tier, rope)
    store = ShadowKV(shape)
    return {"kv": store, "select": Shadow(store)}
