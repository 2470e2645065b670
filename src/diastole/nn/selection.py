"""Selections: what rows attend to when a policy has chosen, by pages or by tokens; and which rows of a batch decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diastole.slots import View
from diastole.state.pages import PAGE
from diastole.types import Array, Batch


@dataclass(frozen=True, slots=True)
class Pages:
    """Heads look at pages of their own. Rows are taken together that look at the same: V such runs of rows."""

    tables: Array  # (V, Hkv, P) int32 page ids
    starts: Array  # (V+1,) int32: run v is rows starts[v]:starts[v+1]
    lo: Array  # (T, Hkv) int32: what a row sees, in tokens of its run's pages
    hi: Array

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        fmt = view.store.fmt
        view.ops.attend(q, view.pages, fmt, self.tables, self.starts, self.lo, self.hi, view.scale, out, lse)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some rows attend to tokens one by one, the others to everything: among these should be who would choose all, for
    sums over single tokens are made in other pieces, and rounded otherwise."""

    which: Array  # (R,) int32: rows of the batch
    at: Array  # (R, S, K) int64: rows of the cache; S sets, one per key/value head or per query head
    counts: Array  # (R, S) int32: of which so many are there

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        b, fmt = view.b, view.store.fmt
        if len(self.which) < len(q):
            hi = b.hi.copy()
            hi[self.which] = 0  # these see nothing here
            view.ops.attend(q, view.pages, fmt, b.tables, b.starts, view.lo, hi, view.scale, out, lse)
        self.pick(view, q, out, lse)

    def pick(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        """``attend`` for those rows alone; the others stay as they are."""
        fmt = view.store.fmt
        view.ops.attend_tokens(q, view.pages, fmt, self.which, self.at, self.counts, view.scale, out, lse)


@dataclass(frozen=True, slots=True)
class Decoding:
    """The rows of a batch that are a stream's own output, each with a past of at least so many tokens."""

    which: Array  # (R,) int32: rows of the batch
    owner: Array  # (R,) int32: their streams
    tables: Array  # (R, P) int32
    starts: Array  # (R+1,) int32: each row by itself
    lo: Array  # (R,) int32
    hi: Array  # (R,) int32

    def cache_rows(self, at: Array) -> Array:
        """Tokens at (R, S, K) int32 of each row's stream as rows of the cache, int64; negative: nobody's."""
        at = np.maximum(at, 0)
        pages = self.tables[np.arange(len(at))[:, None, None], at // PAGE]
        return pages.astype(np.int64) * PAGE + at % PAGE


def decoding(b: Batch, least: int) -> Decoding | None:
    """The rows that decode over a past of ``least`` tokens or more; None: there are none. Computed once per batch."""
    key = f"decoding/{least}"
    if key not in b.notes:
        b.notes[key] = _decoding(b, least)
    found: Decoding | None = b.notes[key]
    return found


def nobody(b: Batch) -> Decoding:
    """No rows of a batch."""
    none = np.empty(0, np.int32)
    return Decoding(none, none, b.tables[:0], none, none, none)


def _decoding(b: Batch, least: int) -> Decoding | None:
    if len(b.grants) == len(b.pos):  # a row of each stream: few, and mostly all of them
        seen = zip(b.grants, b.pos.tolist(), b.lo.tolist(), b.hi.tolist(), strict=True)
        if all([pos >= grant[0].given and hi - lo >= least for grant, pos, lo, hi in seen]):  # noqa: C419 - half the time
            each = np.arange(len(b.pos) + 1, dtype=np.int32)
            return Decoding(each[:-1], each[:-1], b.tables, each, b.lo, b.hi)
    given = np.array([s.given for s, _ in b.grants], np.int32)
    owner = np.repeat(np.arange(len(b.grants), dtype=np.int32), np.diff(b.starts))
    which = np.flatnonzero((b.pos >= given[owner]) & (b.hi - b.lo >= least)).astype(np.int32)
    if not len(which):
        return None
    starts = np.arange(len(which) + 1, dtype=np.int32)
    own = owner[which]
    return Decoding(which, own, b.tables[own], starts, b.lo[which], b.hi[which])


# ---- choosing tokens by exact scores


def weights(view: View, q: Array, rows: Decoding, sets: int, lse: Array | None) -> Array:
    """For these rows the logarithm of the largest softmax weight that a key gets from any query head of a set:
    (R, sets, n), sets = H or Hkv, -inf behind a row's own token. lse (T, H): what the softmax divides by; None: plain
    scores."""
    s = np.empty((len(rows.which), sets, int(rows.hi.max())), np.float32)
    own = np.ascontiguousarray(q[rows.which])
    less = None if lse is None else lse[rows.which]
    fmt, scale = view.store.fmt, view.scale
    view.ops.scores(own, view.pages, fmt, rows.tables, rows.starts, rows.lo, rows.hi, scale, s, less)
    return s


def largest(view: View, rows: Decoding, found: Array, budget: int, sink: int, recent: int) -> Tokens:
    """The ``budget`` tokens of the largest weights found (R, sets, n), which are used up; the first ``sink`` and the
    last ``recent`` are among them in any case."""
    found[..., :sink] = np.inf
    for i, hi in enumerate(rows.hi):
        found[i, :, hi - recent : hi] = np.inf
    r, sets, n = found.shape
    counts = np.minimum(rows.hi, budget).repeat(sets).astype(np.int32)
    places = np.empty((r * sets, budget), np.int32)
    view.ops.tops(found.reshape(r * sets, n), counts, places, counts)
    return Tokens(rows.which, rows.cache_rows(places.reshape(r, sets, budget)), counts.reshape(r, sets))
