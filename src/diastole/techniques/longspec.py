"""LongSpec: a draft block with a window of its own, that looks at the target's last layer for everything older.

Yang, Du, Zhang, Wang, Pang, Du, An: "LongSpec: Long-Context Lossless Speculative Decoding with Efficient Drafting and
Verification", 2025, arXiv 2502.17421. Its memory does not grow with the context, its positions were trained far apart
(anchor offset), and what it guesses is a tree that the target checks in one step. Needs a trained block
(``diastole train longspec``) and a target that keeps all of its last layer.

Ours: the block guesses from the most frequent part of the vocabulary; it has a norm before the head; verification is
the engine's, one draw per node (the published ones for sampling do not keep the law); branches get pages of their own,
so rows see exactly what they would see one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.heads.glide import Glide, Pages, Seen
from diastole.slots import Facts, KVStore
from diastole.slots_drafts import Halt, Span
from diastole.spec.guesser import Guesser
from diastole.state.kv import PagedKV
from diastole.state.lease import Lease, Pool
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Draft, PagedSpec, Stream, UserError
from diastole.weights.calibration import find

NEEDS = frozenset({"paged_kv"})
NAME = "longspec"
MOST = 64  # guesses that one step may verify


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    draft: str = ""  # file of the block; empty: beside the model, or Diastole's own
    tree_shape: str = "1+1+1"  # guesses at each depth; 1+1+1 is a chain of three
    window: int = 512  # tokens that the block's own attention sees


@dataclass(slots=True)
class _Past:
    """What the block has absorbed of a stream: the tokens from a multiple of the page on."""

    first: int  # position of its first row
    fed: int  # tokens of the stream, from its start, that need not be absorbed again


@dataclass(eq=False, slots=True)
class _Round:
    """One stream's guesses while they grow."""

    stream: Stream
    tokens: list[int]
    parents: list[int]
    odds: list[float]
    gains: list[float]  # log probability of the path to each node
    level: list[int]  # nodes whose children come next


class LongSpec(Guesser):
    """Slot ``draft``."""

    looks = True

    def __init__(self, p: Params, facts: Facts) -> None:
        self.shape = _shape(p.tree_shape)
        self.most = sum(self.shape)
        if p.window < len(self.shape) + 1:
            raise _wrong("window", f"must be more than the tree's depth, {len(self.shape)}, not {p.window}")
        if facts.windowed or facts.decoder is None:
            raise UserError(f"{NAME} needs a model whose last layer sees the whole context", param="use")
        self.window, self.context = p.window, facts.context
        self.halts: Sequence[Halt] = ()
        found = find(NAME, facts, p.draft, NAME)
        try:
            self.block = Glide(facts.decoder, found.tensors)
        except (KeyError, ValueError) as e:
            raise _wrong("draft", f"does not fit this model: {e}") from None
        self.spec = PagedSpec(1, facts.kv_heads, facts.head_dim)

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        self.kv = kv
        each = -(-self.window // PAGE) + 3  # a window may begin within a page, and a round writes up to two more
        self.store = PagedKV("bf16")
        self.store.alloc(self.spec, streams * each, self.block.ops)
        self.pool = PagePool(streams * each, self.store)
        return {NAME: self.pool}

    # ---- a round

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        taken = [(s, n) for s, n in zip(streams, lengths, strict=True) if n > 0 and s.known < self.context - 1]
        rounds = [_Round(s, [], [], [], [], []) for s, _ in taken]
        rounds = [r for r in rounds if self._make_room(r.stream)]
        if rounds:
            self._grow(rounds, dict(taken))
        found = {r.stream: Draft(r.tokens, r.parents, None, r.odds) for r in rounds}
        return [found.get(s, Draft(())) for s in streams]

    def _make_room(self, stream: Stream) -> bool:
        """Whether what the stream has said since the last round can be absorbed."""
        lease: Lease | None = stream.leases.get(NAME)
        past: _Past | None = stream.scratch.get(NAME)
        oldest = max(stream.known - self.window, 0)
        if lease is None or past is None or past.fed < oldest:
            if lease is not None:
                lease.close()
            first = oldest // PAGE * PAGE
            past = stream.scratch[NAME] = _Past(first, oldest)
            lease = stream.leases[NAME] = self.pool.lease()
            lease.units = past.fed - first
            if not self.pool.grow(lease, lease.units):
                return False
        self.pool.vacate(lease, oldest - past.first)
        return self.pool.grow(lease, stream.known - past.first)

    def _grow(self, rounds: Sequence[_Round], room: Mapping[Stream, int]) -> None:
        """Grow the trees, all streams together, depth by depth."""
        far = PagePool.tables([r.stream.leases["kv"] for r in rounds])
        own = np.maximum(PagePool.tables([r.stream.leases[NAME] for r in rounds]), 0)
        firsts = np.array([r.stream.scratch[NAME].first for r in rounds], np.int32)
        logits = self._absorb(rounds, own, far, firsts)
        nodes = _Nodes(len(rounds), self.most, self.spec)
        for depth, wide in enumerate(self.shape):
            stopped = self._stopped(rounds) if depth else ()
            at = 0
            for r in rounds:
                rows = max(len(r.level), 1) if depth == 0 or r.level else 0
                self._choose(
                    r, logits[at : at + rows], 0 if r in stopped else min(wide, room[r.stream] - len(r.tokens))
                )
                at += rows
            if depth + 1 == len(self.shape) or not any(r.level for r in rounds):
                break
            logits = self._guess(rounds, own, far, firsts, nodes, depth)

    def _stopped(self, rounds: Sequence[_Round]) -> Sequence[_Round]:
        """The chains that somebody wants to end with their last guess, which has just been fed."""
        fed = [r for r in rounds if r.level]
        if not self.halts or any(len(r.level) > 1 for r in fed):  # a tree's branches are not worth a decision each
            return ()
        streams, drafted = [r.stream for r in fed], [len(r.tokens) for r in fed]
        ends = [halt.stop(streams, drafted, self.block.hidden) for halt in self.halts]
        return [r for r, *stops in zip(fed, *ends, strict=True) if any(stops)]

    def _absorb(self, rounds: Sequence[_Round], own: Array, far: Array, firsts: Array) -> Array:
        """What was said since the last round; logits (B, n) behind the last known token of each stream."""
        spans = [(min(r.stream.scratch[NAME].fed, r.stream.known - 1), r.stream.known) for r in rounds]
        counts = np.array([b - a for a, b in spans])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        owner = np.repeat(np.arange(len(rounds)), counts)
        ids = np.concatenate([r.stream.own.ids[a:b] for r, (a, b) in zip(rounds, spans, strict=True)])
        pos = np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in spans])
        slot = (pos - firsts[owner]).astype(np.int32)
        x, qkv = self.block.keys(ids, pos)
        h = self.block.heads
        rows = PagePool.rows(own, owner, slot)
        self.store.write(0, rows, qkv[:, h : h + self.spec.kv_heads], qkv[:, h + self.spec.kv_heads :])
        done = np.array([r.stream.done for r in rounds], np.int32)
        oldest = np.array([max(r.stream.known - self.window, 0) for r in rounds], np.int32) - firsts  # what is kept
        lo = np.maximum(slot - (self.window - 1), oldest[owner]).astype(np.int32)
        near = Pages(self.store.buffers[0], self.store.fmt, own, starts, lo, slot + 1)
        behind = self._far(far, starts, np.minimum(pos, done[owner]))
        for r in rounds:
            r.stream.scratch[NAME].fed = r.stream.known
        return self.block.logits(x, qkv[:, :h], pos, near, None, behind, starts[1:] - 1)

    def _guess(
        self, rounds: Sequence[_Round], own: Array, far: Array, firsts: Array, nodes: _Nodes, depth: int
    ) -> Array:
        """The last level's nodes; logits (sum of their numbers, n) behind each."""
        counts = np.array([len(r.level) for r in rounds])
        owner = np.repeat(np.arange(len(rounds)), counts)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        ids = np.array([r.tokens[i] for r in rounds for i in r.level], np.int32)
        known = np.array([r.stream.known for r in rounds], np.int32)
        done = np.array([r.stream.done for r in rounds], np.int32)
        pos = known[owner] + np.int32(depth)
        x, qkv = self.block.keys(ids, pos)
        h, g = self.block.heads, self.spec.kv_heads
        seen = nodes.add(rounds, owner, qkv[:, h : h + g], qkv[:, h + g :])
        hi = (known - firsts)[owner].astype(np.int32)
        lo = np.maximum(hi + (depth + 1) - self.window, 0).astype(np.int32)
        near = Pages(self.store.buffers[0], self.store.fmt, own, starts, lo, hi)
        behind = self._far(far, starts, done[owner])
        return self.block.logits(x, qkv[:, :h], pos, near, seen, behind, np.arange(len(ids)))

    def _far(self, tables: Array, starts: Array, hi: Array) -> Pages:
        assert self.kv.buffers is not None
        lo = np.zeros(len(hi), np.int32)
        return Pages(self.kv.buffers[-1], self.kv.fmt, tables, starts, lo, np.ascontiguousarray(hi, np.int32))

    def _choose(self, r: _Round, logits: Array, count: int) -> None:
        """The likeliest ``count`` children of a level, all paths compared. logits (level, n)."""
        parents = r.level or [-1]
        r.level = []
        if count < 1 or not len(logits):
            return
        top = min(count, logits.shape[1])
        best = np.argpartition(logits, -top, 1)[:, -top:] if top > 1 else logits.argmax(1)[:, None]
        most = logits.max(1, keepdims=True)
        log = np.take_along_axis(logits, best, 1) - most - np.log(np.exp(logits - most).sum(1, keepdims=True))
        past = np.array([r.gains[p] if p >= 0 else 0.0 for p in parents])[:, None]
        order = np.argsort(-(log + past), axis=None, kind="stable")[:count]
        for flat in order.tolist():
            row, column = divmod(flat, best.shape[1])
            r.level.append(len(r.tokens))
            r.tokens.append(int(self.block.vocab[best[row, column]]))
            r.parents.append(parents[row])
            r.odds.append(float(np.exp(log[row, column])))
            r.gains.append(float(log[row, column] + past[row, 0]))


class _Nodes:
    """Keys and values of the guesses of a round, by stream."""

    def __init__(self, streams: int, most: int, spec: PagedSpec) -> None:
        self.k, self.v = np.zeros((2, streams, most, spec.kv_heads, spec.head_dim), np.float32)

    def add(self, rounds: Sequence[_Round], owner: Array, k: Array, v: Array) -> Seen:
        """k, v (T, Hkv, D) of the nodes of the last level."""
        last = max(len(r.tokens) for r in rounds)
        mask = np.zeros((len(owner), last), bool)
        row = 0
        for i, r in enumerate(rounds):
            for node in r.level:
                self.k[i, node], self.v[i, node] = k[row], v[row]
                at = node
                while at >= 0:
                    mask[row, at] = True
                    at = r.parents[at]
                row += 1
        return Seen(self.k[:, :last], self.v[:, :last], mask, owner)


def _shape(text: str) -> list[int]:
    try:
        shape = [int(n) for n in text.split("+")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1 or sum(shape) > MOST:
        raise _wrong(
            "tree_shape", f"must be numbers with + between, up to {MOST} in all, such as 1+1+1, not {text!r:.40}"
        )
    return shape


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": LongSpec(p, facts)}
