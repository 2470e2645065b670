"""LoopServe: each block of a prompt chooses the lines that it attends to, and output chooses tokens again as it goes.

Li, Xu, Li et al.: "LoopServe: An Adaptive Dual-phase LLM Inference Acceleration System for Multi-Turn Dialogues",
arXiv 2507.13681. Prompts: a sample of a block's rows tells, for every query head, which columns and diagonals hold
a share ``alpha`` of the attention, and the block's rows attend to these alone. Output: every ``reselect_every`` tokens
the latest output's own queries choose ``budget`` positions per key head, and steps attend to these and to all that came
since. Keys and values of everything stay in a paged cache, which is all that it needs.

Ours: diagonals are as wide as a page. Prompts are absorbed in whole blocks, counted from the stream's start, so that
lines depend on no scheduler's chunk, and cached beginnings are shared in whole blocks. Until ``reselect_every`` tokens
are said, all is attended to. When a stream chooses again its position says, so that streams do so in different steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diastole.kernels.table import Ops
from diastole.nn.lines import Block, Lines, Partly, blocks_of
from diastole.nn.selection import Decoding, Tokens, decoding, nobody
from diastole.slots import NO_END, Facts, KVStore, View
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, KVFormat, Stream, UserError

NEEDS = frozenset({"paged_kv"})
_NOTE = "loopserve"  # in a batch: its plan; in a stream's scratch: its memory


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    alpha: float = 0.955  # share of a block's attention that its lines must hold; 1: prompts are absorbed densely
    sample_rows: int = 32  # of a block, which the lines are chosen by
    block: int = (
        512  # tokens of a prompt that choose together, a multiple of 64; no step takes in less of one at a time
    )
    budget: int = 1024  # positions chosen per key head while decoding, sink and recent ones among them
    reselect_every: int = 16  # output tokens between two choices, and whose queries choose
    sink: int = 4  # first tokens, always attended to
    recent: int = 64  # latest tokens at the time of the choice, always attended to
    dense_below: int = 1024  # tokens of a context under which everything is attended to


@dataclass(slots=True)
class Memory:
    """What a stream's latest output tokens asked for, and what they chose."""

    queries: Array  # (layers, reselect_every, H, D) float32, a ring
    places: Array  # (layers, Hkv, budget) int32: the last choice
    begin: int  # position of the first token that it knows of
    next: int  # position of the first that it does not
    chosen: int = 0  # tokens that there were at the last choice; 0: there was none

    def knows(self, position: int) -> bool:
        """Whether it knows what came right before; what it knows of later tokens were guesses."""
        return max(self.begin, self.chosen) <= position <= self.next


@dataclass(frozen=True, slots=True)
class Step:
    """What one decoding row does."""

    row: int  # among those that decode
    memory: Memory
    position: int
    choose: bool


@dataclass(slots=True)
class Plan:
    """What a batch's rows do, the same in all layers."""

    blocks: list[Block]
    rows: Decoding | None
    steps: list[Step]
    sparse: list[Step] = field(init=False)  # those whose streams have chosen

    def __post_init__(self) -> None:
        self.sparse = [s for s in self.steps if s.memory.chosen]


class TopPositions:
    """Slot ``evict``: the positions with the largest scores, the first ones and the latest."""

    revocable = True

    def __init__(self, p: Params, ops: Ops | None) -> None:
        self.p, self._ops = p, ops

    def keep(self, scores: Array) -> Array:
        heads, n = scores.shape
        scores = scores.copy()
        scores[:, : self.p.sink] = scores[:, max(n - self.p.recent, 0) :] = np.inf
        counts = np.full(heads, min(self.p.budget, n), np.int32)
        places = np.empty((heads, int(counts[0])), np.int32)
        assert self._ops is not None
        self._ops.tops(scores, counts, places, counts)
        return places


class LoopServe:
    """Slots ``select`` and ``ingest``; an ``Unbroken`` too, where nobody chooses."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    prefers: KVFormat = "rows"
    exact = False
    companion = None
    revocable = True

    def __init__(self, p: Params, facts: Facts, evict: TopPositions) -> None:
        _check(p, facts)
        self.p, self.facts, self.evict = p, facts, evict
        self._native: Any = None  # see ``between``
        self.block = p.block if p.alpha < 1 else 1

    def select(self, view: View, q: Array) -> Partly | None:
        plan = self._plan(view.b)
        lines = tuple(Lines.choose(view, q, block, self.p.alpha, self.p.sink) for block in plan.blocks)
        tokens = None if plan.rows is None else self._tokens(view, q, plan, plan.rows)
        return Partly(lines, tokens) if lines or tokens is not None else None

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        plan = self._plan(b)
        if plan.blocks or any(s.choose for s in plan.steps):
            return None
        if self._native is None:
            self._native = fused.Remembered(kv.buffers, kv.fmt, self.facts.heads, self.facts.head_dim, scale)
        rows = nobody(b) if plan.rows is None else plan.rows
        own = np.array([s.row for s in plan.sparse], np.intp)
        hi, since = rows.hi[own], np.array([s.memory.chosen for s in plan.sparse], np.int32)
        self._native.batch(
            b.rows, b.tables, b.starts, b.lo, b.hi,
            rows.which[own], rows.tables[own], np.zeros_like(hi), hi, self.p.budget + hi - since, 0, 0,
        )  # fmt: skip
        turns = np.array([s.position % self.p.reselect_every for s in plan.steps], np.int32)
        rings, choices = [s.memory.queries for s in plan.steps], [s.memory.places for s in plan.sparse]
        self._native.recall(rows.which, rings, turns, choices, since)
        return self._native

    # ---- what rows do

    def _plan(self, b: Batch) -> Plan:
        if _NOTE not in b.notes:
            rows = decoding(b, 1)
            steps = [] if rows is None else [self._step(b, rows, i) for i in range(len(rows.which))]
            blocks: list[Block] = []
            if self.p.alpha < 1:
                blocks = blocks_of(b, self.p.block, self.p.sample_rows, max(self.p.dense_below, PAGE))
            b.notes[_NOTE] = Plan(blocks, rows, steps)
        plan: Plan = b.notes[_NOTE]
        return plan

    def _step(self, b: Batch, rows: Decoding, i: int) -> Step:
        stream, position = b.grants[rows.owner[i]].stream, int(b.pos[rows.which[i]])
        memory: Memory | None = stream.scratch.get(_NOTE)
        if memory is None or not memory.knows(position):
            memory = stream.scratch[_NOTE] = self._memory(position)
        memory.next = position + 1
        choose = self._chooses(memory.begin, position)
        if choose:
            memory.chosen = memory.next
        return Step(i, memory, position, choose)

    def _chooses(self, begin: int, position: int) -> bool:
        """Whether the token there lets its stream choose anew; nothing is known of those before ``begin``."""
        known, every = position + 1 - begin, self.p.reselect_every
        due = known == every or (known > every and (position + 1) % every == 0)
        return due and position >= max(self.p.dense_below - 1, self.p.budget)

    def span(self, stream: Stream) -> int:
        """Up to where it chooses anew."""
        first, every = stream.done, self.p.reselect_every
        if first < stream.given:
            return NO_END
        memory: Memory | None = stream.scratch.get(_NOTE)
        begin = first if memory is None or not memory.knows(first) else memory.begin
        return next((n for n in range(1, every) if self._chooses(begin, first + n)), every)

    def _memory(self, position: int) -> Memory:
        f = self.facts
        queries = np.zeros((f.layers, self.p.reselect_every, f.heads, f.head_dim), np.float32)
        places = np.zeros((f.layers, f.kv_heads, self.p.budget), np.int32)
        return Memory(queries, places, position, position)

    # ---- output

    def _tokens(self, view: View, q: Array, plan: Plan, rows: Decoding) -> Tokens | None:
        choosing = [s for s in plan.steps if s.choose]
        self._ask(view, q, rows, choosing)
        self._choose(view, rows, choosing)
        self._ask(view, q, rows, [s for s in plan.steps if not s.choose])  # guesses behind those that choose, too
        if not plan.sparse:
            return None
        heads, width = self.facts.kv_heads, self.p.budget + self.p.reselect_every
        at = np.zeros((len(plan.sparse), heads, width), np.int32)
        counts = np.empty((len(plan.sparse), heads), np.int32)
        for i, step in enumerate(plan.sparse):
            places, since = step.memory.places[view.layer], np.arange(step.memory.chosen, step.position + 1)
            counts[i] = n = self.p.budget + len(since)
            at[i, :, : self.p.budget] = places
            at[i, :, self.p.budget : n] = since
        which = np.array([s.row for s in plan.sparse])
        tables = rows.tables[which]
        cache = tables[np.arange(len(which))[:, None, None], at // PAGE].astype(np.int64) * PAGE + at % PAGE
        return Tokens(rows.which[which], cache, counts)

    def _ask(self, view: View, q: Array, rows: Decoding, steps: list[Step]) -> None:
        """Keep what these rows ask for."""
        for step in steps:
            step.memory.queries[view.layer, step.position % self.p.reselect_every] = q[rows.which[step.row]]

    def _choose(self, view: View, rows: Decoding, steps: list[Step]) -> None:
        """Let the latest queries of these rows' streams choose anew."""
        if not steps:
            return
        every = self.p.reselect_every
        # The ring begins with the position that is a multiple of its size: the order within does not matter to a sum.
        hi = np.concatenate([_ring(s.position, every) + 1 for s in steps]).astype(np.int32)
        q = np.concatenate([s.memory.queries[view.layer] for s in steps])
        starts = np.arange(0, len(hi) + 1, every, dtype=np.int32)
        tables = rows.tables[[s.row for s in steps]]
        scores = np.empty((len(steps), self.facts.kv_heads, int(hi.max())), np.float32)
        lo = np.zeros_like(hi)
        view.ops.masses(q, view.pages, view.store.fmt, tables, starts, lo, hi, view.scale, scores)
        for step, row in zip(steps, scores, strict=True):
            step.memory.places[view.layer] = self.evict.keep(row[:, : step.position + 1])


def _ring(position: int, size: int) -> Array:
    """The position that each place of a ring holds, where the latest is this one."""
    at = np.arange(size)
    held: Array = position - (position - at) % size
    return held


def _check(p: Params, facts: Facts) -> None:
    if not 0 < p.alpha <= 1:
        raise _wrong("alpha", "must be above 0 and at most 1")
    if p.block < PAGE or p.block % PAGE:
        raise _wrong("block", f"must be a multiple of {PAGE}")
    if not 1 <= p.sample_rows <= p.block:
        raise _wrong("sample_rows", "must be between 1 and block")
    if p.sink < 0 or p.recent < 1:
        raise _wrong("sink", "must not be negative, and recent is at least 1")
    if p.reselect_every < 1:
        raise _wrong("reselect_every", "must be at least 1")
    if p.budget < p.sink + p.recent + p.reselect_every:
        raise _wrong("budget", "must hold sink, recent and reselect_every")
    if facts.windowed:
        raise _wrong("budget", "fits no model whose layers see a window only: it chooses from everything")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"loopserve: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    evict = TopPositions(p, facts.ops)
    loopserve = LoopServe(p, facts, evict)
    return {"select": loopserve, "evict": evict, "ingest": loopserve}
