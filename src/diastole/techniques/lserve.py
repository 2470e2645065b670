"""LServe: half of the heads see only the first and the latest tokens, the others pick pages by bounds while decoding.

Yang, Guo, Tang and others: "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention", MLSys 2025,
arXiv 2502.14866. Key/value heads that a calibration found to need no distant past stream: prompts and answers see sink
pages and a window of pages there. The other heads see all of a prompt; while decoding they look at as many pages as
``budget`` holds, those whose keys' largest and smallest values by channel promise the highest scores, chosen anew every
``refresh`` tokens. It needs a paged cache, and for streaming heads the table of ``diastole calibrate lserve``.

Ours: query heads that share a key choose together; page 0 and the last two are always in, and pages that were begun
since a choice; steps are counted by stream, from the first token that it says, so company and preemption change
nothing. The default sizes are those of the paper scaled to contexts of a few thousand tokens. Streaming heads save
time; with ``pool`` memory too: then they have pages of their own, as many for any context (``stores/streaming.py``).
Else a page's heads lie together, as ``kv`` keeps them, and one that is past the window of some is seen by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from diastole.nn.selection import Pages
from diastole.slots import Facts, KVStore, View
from diastole.state.arena import layered
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.stores.streaming import StreamingKV
from diastole.types import Array, Batch, KVFormat, PagedSpec, UserError
from diastole.weights import calibration

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

NEEDS = frozenset({"paged_kv"})
FIRST, RECENT = 1, 2  # pages that are always among the chosen
_NOTE = "lserve"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs. Sizes in tokens are multiples of a page's 64."""

    sparsity: str = "auto"  # share of key/value heads that stream, 0 to 1; "auto": 0.5 with a table of heads, else 0
    pattern: str = ""  # that table: a file of `diastole calibrate lserve`; "": as found there for the model
    sink: int = 64  # first tokens that streaming heads see
    prefill_local: int = 1024  # latest tokens that streaming heads see in a prompt, besides a row's own page
    decode_local: int = 128  # the same while decoding
    budget: int = 1024  # tokens that other heads see while decoding
    logical_page: int = 16  # tokens that a bound is kept for; divides a page
    dense_layers: int = 0  # first layers whose heads choose nothing: those that do not stream see everything
    refresh: int = 4  # decoded tokens for which a choice of pages holds
    pool: str = ""  # "bf16", "int8": form of all rows, of which streaming heads have a pool of their own; "": one pool
    share: float = 0.0  # of all pages that have a place in that pool at once; 0: as streams of the whole context need


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a stream's heads look at for some steps: kept with the stream."""

    at: int  # position of the row that chose
    block: int  # last page when it was made
    places: Array  # (L, Hkv, K) int32, in the stream's pages: good wherever these lie


class Run(NamedTuple):
    """What a run of decoding rows looks at."""

    kept: Chosen
    by: int  # row of the batch that chooses it; -1: it was chosen before


@dataclass(frozen=True, slots=True)
class Due:
    """Rows of a batch that choose anew, layer by layer."""

    rows: Array  # (R,) rows of the batch
    runs: Array  # (R,) int32: the runs of the plan that they choose for
    tables: Array  # (R, P) int32
    blocks: Array  # (R,) int32: their last pages
    places: Array  # (L, R, Hkv, K) int32

    def queries(self, q: Array) -> Array:
        return np.ascontiguousarray(q[self.rows])


@dataclass(frozen=True, slots=True)
class Plan:
    """What the rows of a batch look at, in all layers: runs of rows that look at the same pages."""

    tables: Array  # (L, V, Hkv, P) int32
    starts: Array  # (V+1,) int32
    lo: Array  # (T, Hkv) int32
    hi: Array  # (L, T, Hkv) int32
    due: Due | None


class Bounds:
    """A page's companion: its keys' largest and smallest values by channel, for each run of ``tokens`` tokens, of the
    heads that choose, (L, Hkv) bool.

    They are made when the last key of a run is there, from keys as they are stored. Who has begun a page always looks
    at it, so nobody asks for those that are not there yet, nor for what a rollback left behind.
    """

    def __init__(self, tokens: int, pattern: str, chooses: Array) -> None:
        self.tokens, self.per, self.chooses = tokens, PAGE // tokens, chooses
        self.layout = f"bounds{tokens}{pattern}"
        self.arrays: list[Array] = []

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> Sequence[Array]:
        size, heads = 4 * spec.head_dim * self.per, self.chooses.sum(1).tolist()
        room = layered(ops, spec.layers, (pages * max(heads) * size,))
        self.arrays = [a[: pages * n * size].reshape(pages, n, size) for a, n in zip(room, heads, strict=True)]
        return self.arrays

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        """Nothing yet: see ``close``."""

    def ends(self, b: Batch) -> Array:
        """Rows of the cache with which this batch completes runs of tokens."""
        rows: Array = b.rows[b.rows % self.tokens == self.tokens - 1]
        return rows

    def close(self, view: View) -> None:
        """Take in the runs of tokens that this batch has completed."""
        key = "lserve/closed"
        if key not in view.b.notes:
            view.b.notes[key] = self.ends(view.b)[:, None] + np.arange(1 - self.tokens, 1)
        at: Array = view.b.notes[key]
        if not len(at) or not self.arrays[view.layer].size:
            return
        k, _ = view.store.read(view.layer, at.ravel())
        k = k[:, self.chooses[view.layer]].reshape(*at.shape, -1, k.shape[2])
        rows = np.concatenate([k.max(1), k.min(1)], -1)  # (n, Hkv, 2·D)
        # [page, head, step, run, piece]: pieces of all runs side by side
        index = self.arrays[view.layer].view(np.uint16)
        index = index.reshape(*index.shape[:2], -1, self.per, 32 // self.per)
        pieces = _bf16(rows).reshape(*rows.shape[:2], -1, 32 // self.per)
        index[at[:, -1] // PAGE, :, :, at[:, -1] % PAGE // self.tokens] = pieces


@dataclass(frozen=True, slots=True)
class Apart(Pages):
    """The same where streaming heads have pages of their own: the store knows where."""

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        view.store.attend(view.layer, q, self.tables, self.starts, self.lo, self.hi, view.scale, out, lse)


class LServe:
    """Slot ``select``; an ``Unbroken`` too."""

    prefers: KVFormat = "bf16"
    exact = False
    revocable = True

    def __init__(self, p: Params, facts: Facts) -> None:
        self.p, self.heads, self.dim = p, facts.heads, facts.head_dim
        self._native: Any = None  # see ``between``
        _check(p, facts)
        self.streams, pattern = _streaming(p, facts)  # (L, Hkv) bool
        late = np.arange(facts.layers)[:, None] >= p.dense_layers
        self.chooses = ~self.streams & late  # (L, Hkv) bool
        self.busy = [bool(own.any()) for own in self.chooses]  # layers in which any head chooses
        self.asks = np.where(self.chooses, np.cumsum(self.chooses, 1), 0).astype(np.int32)  # 1 + place among them
        self.companion = Bounds(p.logical_page, pattern, self.chooses)
        self.sink, self.pages = p.sink // PAGE, p.budget // PAGE
        self.locals = np.array([p.prefill_local // PAGE, p.decode_local // PAGE], np.int32)
        window, rows = int(self.locals.max()), cast(KVFormat, p.pool)
        self.store: StreamingKV | None = None
        self.keeps: KVStore | None = None  # None: whatever there is
        self.reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
        if rows and self.streams.any():
            self.keeps = self.store = StreamingKV(self.streams, rows, self.sink, window, facts.context, p.share)
            self.reads = frozenset({self.store.fmt})
        elif rows:
            self.keeps = PagedKV(rows)

    def select(self, view: View, q: Array) -> Pages | None:
        b, layer = view.b, view.layer
        self.companion.close(view)
        plan = self._planned(b)
        if plan is None:
            return None
        if plan.due is not None and self.busy[layer]:
            self._choose(view, q, plan, plan.due)
        return (Pages if self.store is None else Apart)(plan.tables[layer], plan.starts, plan.lo, plan.hi[layer])

    def _choose(self, view: View, q: Array, plan: Plan, due: Due) -> None:
        layer = view.layer
        view.ops.pick_pages(
            due.queries(q),
            self.companion.arrays[layer],
            self.companion.per,
            due.tables,
            due.blocks,
            self.asks[layer],
            FIRST,
            RECENT,
            due.places[layer],
            due.runs,
            plan.tables[layer],
        )

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        plan = self._planned(b) or self._everything(b)
        if self._native is None:
            bounds, lanes = self.companion, [] if self.store is None else [[*self.store.lanes]]
            rows = kv.fmt if self.store is None else self.store.rows
            own = kv.buffers, rows, self.heads, self.dim, scale, bounds.arrays, bounds.tokens, [*self.asks], *lanes
            self._native = fused.ByPages(*own)
        lists = b.rows[None] if self.store is None else self.store.lists(b.rows)
        native = self._native
        native.batch(lists, [*plan.tables], plan.starts, plan.lo, [*plan.hi], self.companion.ends(b))
        if (due := plan.due) is not None:
            which = due.rows.astype(np.int32)
            native.due(which, due.runs, due.tables, due.blocks, FIRST, RECENT, [*due.places], [*plan.tables])
        return native

    # ---- what a batch looks at

    def _planned(self, b: Batch) -> Plan | None:
        if _NOTE not in b.notes:
            b.notes[_NOTE] = self._plan(b)
        plan: Plan | None = b.notes[_NOTE]
        return plan

    def _everything(self, b: Batch) -> Plan:
        layers, heads = self.streams.shape
        near, pages = (tables[:, None] for tables in (self._near(b.tables), b.tables))
        tables = np.where(self.streams[:, None, :, None], near, pages)
        lo, hi = (np.repeat(bound[:, None], heads, 1) for bound in (b.lo, b.hi))
        return Plan(tables, b.starts, lo, np.broadcast_to(hi, (layers, *hi.shape)), None)

    def _near(self, pages: Array) -> Array:
        """By what streaming heads know pages."""
        return pages if self.store is None else self.store.slots[pages]

    def _plan(self, b: Batch) -> Plan | None:
        """None: everything."""
        owner = np.repeat(np.arange(len(b.grants)), np.diff(b.starts))
        pos = b.hi - 1
        block = pos // PAGE
        said = pos - np.array([s.given for s, _ in b.grants], np.int32)[owner]  # tokens of its own before this
        decodes = said >= 0
        turn = np.maximum(said // self.p.refresh, -1)
        new = np.ones(len(pos), bool)  # where a run begins
        new[1:] = (owner[1:] != owner[:-1]) | (block[1:] != block[:-1]) | (turn[1:] != turn[:-1])
        first = np.flatnonzero(new)
        whose, last, speaks = owner[first], block[first], decodes[first]
        local = self.locals[speaks.astype(np.int8)]
        jump = np.maximum(last - self.sink - local, 0)  # pages between sink and window
        jump *= self.streams.any()
        chosen = self._choices(b, np.flatnonzero(speaks & (last >= self.pages) & any(self.busy)), first, whose, last)
        if not chosen and not jump.any():
            return None
        left = np.zeros_like(last)  # pages that heads leave out which choose
        for v, run in chosen.items():
            left[v] = run.kept.block + 1 - self.pages
        unseen = np.where(self.streams[:, None], jump[:, None], np.where(self.chooses[:, None], left[:, None], 0))
        pages = b.tables[whose]
        place = np.arange((last[:, None] + 1 - unseen).max())
        ahead = (place >= self.sink) * jump[:, None]
        each = np.arange(len(pages))[:, None]
        window, everything = (pages[each, np.minimum(at, last[:, None])][:, None] for at in (place + ahead, place))
        tables = np.where(self.streams[:, None, :, None], self._near(window), everything)  # (L, V, Hkv, P)
        for v, run in chosen.items():
            self._lay(tables[:, v], pages[v], run.kept, int(last[v]))
        starts = np.array([*first, len(pos)], np.int32)
        hi = b.hi[:, None] - np.repeat(unseen, np.diff(starts), 1) * np.int32(PAGE)
        return Plan(tables, starts, np.zeros(hi.shape[1:], np.int32), hi, self._due(b, chosen, whose))

    def _choices(self, b: Batch, runs: Array, first: Array, whose: Array, last: Array) -> dict[int, Run]:
        """What these runs look at, but for those whose streams had too few pages to choose among.

        Who said the first token of a turn has chosen for all of it. Whether that was a guess or not, its position is
        decoded before any that look at the choice, and a token that comes there later chooses anew.
        """
        found: dict[int, Run] = {}
        new: dict[tuple[int, int], Run] = {}  # by stream of the batch and position
        for v in runs.tolist():
            stream, row = b.grants[whose[v]].stream, int(first[v])
            pos = int(b.hi[row]) - 1
            at = stream.given + (pos - stream.given) // self.p.refresh * self.p.refresh
            if at // PAGE < self.pages:
                continue
            kept: Chosen | None = stream.scratch.get(_NOTE, {}).get(at)
            run = new.get((int(whose[v]), at))
            if run is None and kept is not None and pos != at:
                run = Run(kept, -1)
            elif run is None:
                layers, heads = self.streams.shape
                places = np.zeros((layers, heads, self.pages), np.int32)
                run = new[int(whose[v]), at] = Run(Chosen(at, int(last[v]), places), row)
            found[v] = run
        return found

    def _lay(self, tables: Array, own: Array, kept: Chosen, last: int) -> None:
        """Put a stream's choice, and the pages begun since, where its heads look: tables (L, Hkv, P)."""
        since = own[kept.block + 1 : last + 1]
        pages = np.concatenate([own[kept.places], np.broadcast_to(since, (*self.streams.shape, len(since)))], -1)
        at = slice(pages.shape[-1])
        tables[..., at] = np.where(self.chooses[..., None], pages, tables[..., at])

    def _due(self, b: Batch, chosen: dict[int, Run], whose: Array) -> Due | None:
        """Those of the chosen that are still to be made, which their streams then keep."""
        new = {v: run for v, run in chosen.items() if run.by >= 0}
        if not new:
            return None
        runs = np.array([*new], np.int32)
        layers, heads = self.streams.shape
        places = np.zeros((layers, len(new), heads, self.pages), np.int32)
        for i, (v, (kept, _)) in enumerate(new.items()):
            stream = b.grants[whose[v]].stream
            held, since = stream.scratch.get(_NOTE, {}), stream.done - self.p.refresh
            held = {at: earlier for at, earlier in held.items() if at > since}  # a guess may turn out wrong
            stream.scratch[_NOTE] = held | {kept.at: Chosen(kept.at, kept.block, places[:, i])}
        rows, blocks = [run.by for run in new.values()], [run.kept.block for run in new.values()]
        return Due(np.array(rows), runs, b.tables[whose[runs]], np.array(blocks, np.int32), places)


def _bf16(x: Array) -> Array:
    """Bits of the nearest bfloat16, of ties the even one."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _check(p: Params, facts: Facts) -> None:
    for knob, least in (("sink", 0), ("prefill_local", PAGE), ("decode_local", PAGE)):
        if getattr(p, knob) % PAGE or getattr(p, knob) < least:
            raise _wrong(knob, f"must be a multiple of {PAGE}, the tokens of a page, at least {least}")
    if p.budget % PAGE or p.budget < (FIRST + RECENT) * PAGE:
        raise _wrong(
            "budget", f"must be a multiple of {PAGE}, the tokens of a page, at least {(FIRST + RECENT) * PAGE}"
        )
    if p.logical_page not in {4, 8, 16, 32, 64}:
        raise _wrong("logical_page", f"must divide the page of {PAGE} tokens: 4, 8, 16, 32 or 64")
    if p.pool not in {"", "bf16", "int8"}:
        raise _wrong("pool", f"must be bf16 or int8, the form of all rows, or nothing, not {p.pool!r:.40}")
    if not 0 <= p.share <= 1:
        raise _wrong("share", f"must lie between 0 and 1, not {p.share}")
    if p.refresh < 1:
        raise _wrong("refresh", "must be at least 1")
    if not 0 <= p.dense_layers <= facts.layers:
        raise _wrong("dense_layers", f"must be 0 to {facts.layers}, the layers of this model")
    if facts.windowed:
        raise _wrong("sink", "fits no model whose layers see a window only: its first tokens are out of their reach")


def _streaming(p: Params, facts: Facts) -> tuple[Array, str]:
    """Which heads stream, (L, Hkv), and a name of the table that says so."""
    share = _share(p, facts)
    if share == 0:
        return np.zeros((facts.layers, facts.kv_heads), bool), ""
    found = calibration.find(_NOTE, facts, p.pattern)
    gates = found.tensors.get("gates", np.empty(0))
    if gates.shape != (facts.layers, facts.kv_heads):
        raise _wrong(
            "pattern", f"must be of {facts.layers} layers x {facts.kv_heads} key/value heads, not {gates.shape}"
        )
    order = np.argsort(gates, axis=None, kind="stable")  # of equal ones the first stream
    streams = np.zeros(gates.size, bool)
    streams[order[: round(share * gates.size)]] = True
    return streams.reshape(gates.shape), f"-{found.id}"


def _share(p: Params, facts: Facts) -> float:
    """The share of heads that stream."""
    if p.sparsity == "auto":
        return 0.5 if p.pattern or _has_table(facts) else 0.0
    try:
        share = float(p.sparsity)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise _wrong("sparsity", f'must be a share from 0 to 1, or "auto", not {p.sparsity!r:.40}')
    return share


def _has_table(facts: Facts) -> bool:
    own = facts.source is not None and calibration.beside(_NOTE, facts).exists()
    return own or calibration.shipped(_NOTE, facts).exists()


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"lserve: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    lserve = LServe(p, facts)
    return {"select": lserve} if lserve.keeps is None else {"select": lserve, "kv": lserve.keeps}
