"""DEL: a model drafts with its own first layers, and learns from every round after which layer to stop.

Entezari Zarch, Gao, Jiang, Annavaram: "DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding",
COLM 2025, arXiv 2504.05598; self-speculation: Elhoushi et al., "LayerSkip", ACL 2024, arXiv 2404.16710. What the layers
up to the exit compute for a guess, its keys and values among it, is kept, and verification goes on from there. What
the model would have guessed after every other exit falls out of the same round (shadow tokens); the exit with the most
expected tokens per cost is taken next. Needs a model that was trained for early exits (``diastole train layerskip``)
or adapters (``diastole train exits``); any other is served too, but guesses badly and soon rests.

    draft    row of the last known token, then of each guess   layers 1..E, one row per stream at a time
    verify   row of the last guess, and of who did not draft   layers 1..E
             all rows                                          layers E+1..L, the exits' hidden states are kept

Ours: a few exits instead of all layers, one exit for all streams of a step (the largest sum of what each expects);
an exit's head may cover a part of the vocabulary, for shadow tokens too; costs in measured seconds; a prior instead of
0/0; truth is what was chosen, which is the arg-max where a request is greedy; streams whose guesses do not pay rest,
and where that was so lately, new streams rest after their first poor round.
Left out: statistics from the prompt (they would cost the whole head at 32 positions), and drawing guesses by chance.
Where somebody acts inside the layers, a guess is drafted without him and verified from the first layer on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diastole.heads.exits import Heads
from diastole.heads.rounds import Notes, counted, measured, right, thresholds, tokens_per_cost
from diastole.nn.decoder import Decoder
from diastole.nn.inside import NOBODY, Inside
from diastole.sample import Chosen
from diastole.slots import Facts, KVStore
from diastole.slots_drafts import Span
from diastole.spec.guesser import Guesser
from diastole.state.lease import Lease, Pool
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Batch, Draft, Stream, UserError
from diastole.weights.calibration import beside, find, shipped

NEEDS = frozenset({"paged_kv"})
NAME = "del"
NONE = "none"
MOST = 18  # guesses of a round, as published
AUTO = 5  # exits that are compared where nobody names them
LEFT = 4  # free pages that guesses leave to those who have to go on


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    controller: str = "del"  # dele: the objective also decides the length; static: one exit, one length
    exits: str = "auto"  # layers after which may be guessed, with + between; auto: the adapters', or five in even steps
    length: int = 4  # guesses of a round, where controller is static
    max_draft: int = MOST  # guesses of a round, at most
    omega: float = 0.95  # what a round's statistics count for, one round later
    cost: str = "measured"  # or layers, as published
    adapters: str = ""  # file; empty: beside the model or Diastole's own, if there is one; none: bare exits
    vocab: int = 0  # most frequent tokens that may be guessed; 0: all that the adapters know, or else all
    shadow_every: int = 1  # rounds between two looks at what other exits would have guessed
    rest: int = 32  # steps without guesses after rounds below break-even, longer each time; 0: guess on


# ---- a round


@dataclass(slots=True)
class _Round:
    """One stream's guesses while they grow, and what was computed for them."""

    stream: Stream
    lease: Lease
    most: int
    least: float  # how likely a guess must be for the round to go on
    ids: list[int]  # the last known token, and the guesses
    first: int  # position of the first of them
    odds: list[float] = field(default_factory=list)
    kept: list[dict[int, Array]] = field(default_factory=list)  # by row: hidden states (d,) by layer, the exit's last


@dataclass(slots=True)
class Relay:
    """The way of a step through the model: rows that drafting took through the first layers go on from there."""

    exit: int  # after how many layers
    exits: Sequence[int]  # layers after which hidden states are kept
    rounds: Mapping[Stream, _Round]  # of the streams that drafted
    kept: Mapping[int, dict[int, Array]]  # by row of the batch, what ``_Round.kept`` has of it
    places: Mapping[Stream, int]  # of each stream whose shadow tokens are wanted, where in ``rows`` its rows begin
    rows: Array  # (W,) those rows of the batch
    work: Work
    seen: dict[int, Array] = field(default_factory=dict)  # by layer: hidden states (W, d) of ``rows``

    def __call__(self, decoder: Decoder, b: Batch, state: Mapping[str, Any]) -> Array:
        inside: Inside = state.get("inside", NOBODY)
        kept, layers, rows = self.kept if inside.idle else {}, len(decoder.blocks), self.rows
        x = np.empty((len(b.inputs), decoder.width), np.float32)
        seen = self.seen = {exit: np.empty((len(rows), decoder.width), np.float32) for exit in self.exits}
        fresh = np.ones(len(x), bool)
        for row, states in kept.items():
            fresh[row], x[row] = False, states[self.exit]
        if fresh.any():
            sub, new = only(b, fresh), fresh[rows]
            at = (np.cumsum(fresh) - 1)[rows[new]]
            rest = decoder.embedded(sub.inputs, np.empty((len(sub.inputs), decoder.width), np.float32))
            for layer in passed(decoder, sub, state, rest, 0, self.exit, self.exits):
                if layer in seen:
                    seen[layer][new] = rest[at]
            x[fresh] = rest
        for i, row in enumerate(rows.tolist()):
            for layer, state_of in kept.get(row, {}).items():
                seen[layer][i] = state_of
        for layer in passed(decoder, b, state, x, self.exit, layers, self.exits):
            if layer in seen:
                seen[layer][:] = x[rows]
        self.work.verified += int(fresh.sum()) * self.exit + len(x) * (layers - self.exit)
        self.work.again += len(x) * layers
        if b.tap is not None:
            decoder.norm(x[b.tap.rows], b.tap.hidden)
        return decoder.logits(x[b.want])

    def states(self, stream: Stream, n: int) -> list[tuple[int, Array]]:
        """By exit, after a stream's first ``n`` rows: (n, d)."""
        at = self.places[stream]
        return [(exit, self.seen[exit][at : at + n]) for exit in self.exits]


def passed(
    decoder: Decoder, b: Batch, state: Mapping[str, Any], x: Array, first: int, last: int, stops: Sequence[int]
) -> Iterator[int]:
    """Take hidden states x (T, d) from after layer ``first`` to after ``last``, in place; gives each stop on the way,
    and ``last``, when x has come there."""
    for stop in [*(s for s in stops if first < s < last), last]:
        decoder.part(b, state, x, first, stop)
        yield stop
        first = stop


def only(b: Batch, rows: Array) -> Batch:
    """Some of the rows of a batch without branches: rows (T,) bool. Unless it is all of them, nobody who acts inside
    the layers may see it."""
    if rows.all():
        return b
    starts = np.concatenate([[0], np.cumsum(rows)])[b.starts].astype(np.int32)
    there = np.flatnonzero(np.diff(starts))
    own, tables = np.append(starts[there], starts[-1:]), np.ascontiguousarray(b.tables[there])
    return Batch((), (), b.inputs[rows], b.pos[rows], own, b.rows[rows], tables, b.lo[rows], b.hi[rows], b.want[:0])


@dataclass(slots=True)
class Work:
    """Rows times layers, counted."""

    drafted: int = 0
    verified: int = 0
    again: int = 0  # what verification would be if it began at the first layer


class Del(Guesser):
    """Slot ``draft``."""

    looks = True

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p)
        if facts.decoder is None or facts.layers < 2:
            raise UserError(f"{NAME} needs a model whose layers it can run one by one", param="use")
        self.p, self.decoder, self.static = p, facts.decoder, p.controller == "static"
        tensors = _tensors(p, facts)
        try:
            self.heads = Heads(facts.decoder, tensors, p.vocab)
        except (KeyError, ValueError) as e:
            raise _wrong("adapters", f"does not fit this model: {e}") from None
        self.exits = _exits(p, facts.layers, self.heads.adapters)
        self.most = p.length if self.static else p.max_draft
        self.costs = counted(facts.layers, self.most)
        self._known: dict[int, Array] = {}  # costs of rounds, by streams
        self.work, self.exit = Work(), self.exits[0]
        self._rounds: dict[Stream, _Round] = {}
        self._relay: Relay | None = None
        self._rested = 0  # rests in a row of whoever drafted last, from which new streams go on

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        self.kv = kv
        if self.p.cost == "measured":
            shadows = 0.0 if self.static else len(self.exits) / self.p.shadow_every
            self.costs = measured(self.decoder, kv, self.heads, self.most, shadows)
            self._known.clear()
        return {}

    # ---- drafting

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        self._give_back({})  # of a step that failed
        wishes = {s: n for s, n in zip(streams, lengths, strict=True) if n > 0 and not self._rests(s)}
        if not wishes:
            return [Draft(()) for _ in streams]
        costs = self._costs(len(wishes))
        self.exit = self._best(list(wishes), costs)
        rounds = [r for r in (self._begin(s, n, costs) for s, n in wishes.items()) if r.most > 0]
        self._rounds = {r.stream: r for r in rounds}
        while rounds:
            self._guess(rounds)
            rounds = [r for r in rounds if len(r.odds) < r.most and r.odds[-1] >= r.least]
        found = {s: Draft(r.ids[1:], odds=r.odds) for s, r in self._rounds.items()}
        return [found.get(s, Draft(())) for s in streams]

    def _costs(self, streams: int) -> Array:
        """Of rounds of so many streams, by exit and number of guesses: (C, most + 1)."""
        if streams not in self._known:
            self._known[streams] = np.stack([self.costs.rounds(exit, streams) for exit in self.exits])
        return self._known[streams]

    def _notes(self, stream: Stream) -> Notes:
        notes: Notes | None = stream.scratch.get(NAME)
        if notes is None:
            notes = stream.scratch[NAME] = Notes(np.zeros((4, len(self.exits))), rests=self._rested)
        return notes

    def _rests(self, stream: Stream) -> bool:
        notes = self._notes(stream)
        rests = notes.resting > 0
        notes.resting -= rests
        return rests

    def _best(self, streams: Sequence[Stream], costs: Array) -> int:
        """The exit of this step. costs (C, most + 1); without a guess all exits are the same."""
        known = [notes.stats for notes in map(self._notes, streams) if notes.rounds]
        worth = sum([tokens_per_cost(right(x), costs)[:, 1:].max(1) for x in known], np.zeros(len(costs)))
        return self.exits[int(worth.argmax())]  # the first where nothing is known

    def _begin(self, stream: Stream, n: int, costs: Array) -> _Round:
        notes, at = self._notes(stream), self.exits.index(self.exit)
        least = 0.0
        if self.static:
            n = min(n, self.most)
        elif not notes.rounds:
            n = 1
        elif self.p.controller == "dele":
            n = min(n, 1 + int(tokens_per_cost(right(notes.stats), costs)[at, 1:].argmax()))
        else:
            least = float(thresholds(notes.stats)[at])
        lease = stream.leases["kv"]
        return _Round(stream, lease, self._room(stream, lease, n), least, [stream.own.tip], stream.done)

    def _room(self, stream: Stream, lease: Lease, n: int) -> int:
        """How many rows may be written behind what a stream has absorbed; nobody else is to starve for them."""
        pool, done = lease.pool, stream.done
        assert isinstance(pool, PagePool)
        last = len(lease.places) * PAGE - done
        if n > last and pool.free <= LEFT:
            n = last
        return n if n > 0 and pool.grow(lease, done + n) else 0

    def _guess(self, rounds: Sequence[_Round]) -> None:
        """One more guess for each, all together."""
        b = _last_rows(rounds)
        x = self.decoder.embedded(b.inputs, np.empty((len(rounds), self.decoder.width), np.float32))
        stops = () if self.static else self.exits
        kept: list[dict[int, Array]] = [{} for _ in rounds]
        for layer in passed(self.decoder, b, {"kv": self.kv}, x, 0, self.exit, stops):
            for states, row in zip(kept, x.copy(), strict=True):
                states[layer] = row
        self.work.drafted += len(rounds) * self.exit
        ids, odds = self.heads.say([(self.exit, x)])
        for r, states, id, sure in zip(rounds, kept, ids.tolist(), odds.tolist(), strict=True):
            r.kept.append(states)
            r.ids.append(id)
            r.odds.append(sure)

    # ---- verification

    def ready(self, batch: Batch) -> Batch:
        rounds = self._rounds
        self._give_back({s: s.done + n for s, n in batch.grants})
        self._relay = None
        if batch.also is not None:  # branches, which are never ours
            return batch
        kept: dict[int, dict[int, Array]] = {}
        places: dict[Stream, int] = {}
        rows: list[int] = []
        for i, (stream, n) in enumerate(batch.grants):
            r, at = rounds.get(stream), int(batch.starts[i])
            if r is None or batch.leases[i].get("kv") is not r.lease or batch.pos[at] != r.first:
                continue
            for row, id, states in zip(range(at, at + n), r.ids, r.kept, strict=False):
                if batch.inputs[row] != id:
                    break
                kept[row] = states
            if not self.static and self._notes(stream).rounds % self.p.shadow_every == 0:
                places[stream] = len(rows)
                rows += range(at, at + n)
        if not kept:
            return batch
        exits = self.exits if places else ()
        self._relay = Relay(self.exit, exits, rounds, kept, places, np.array(rows, np.int64), self.work)
        return replace(batch, relay=self._relay)

    def _give_back(self, ends: Mapping[Stream, int]) -> None:
        """What rounds have room for beyond where their streams will be; the rounds are over."""
        for stream, r in self._rounds.items():
            end = ends.get(stream, stream.done)
            if stream.leases.get("kv") is r.lease and r.lease.units > end:
                r.lease.pool.truncate(r.lease, end)
        self._rounds = {}

    def verified(self, stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        relay = self._relay
        if relay is None or stream not in relay.rounds:
            return
        notes, omega = self._notes(stream), self.p.omega
        truth = np.array([c.id for c in chosen])  # behind the last of these the context is another
        if stream in relay.places:
            shape = len(self.exits), len(truth)
            ids, odds = self.heads.say(relay.states(stream, len(truth)))
            notes.learn(ids.reshape(shape) == truth, odds.reshape(shape), omega)
        streams = len(relay.rounds)
        spent = self.costs.rounds(relay.exit, streams)[len(relay.rounds[stream].odds)]
        notes.judge(len(truth), float(spent), self.costs.plain(streams), omega, self.p.rest)
        self._rested = notes.rests


def _last_rows(rounds: Sequence[_Round]) -> Batch:
    """The row of each stream's last token or guess."""
    n, tables = len(rounds), PagePool.tables([r.lease for r in rounds])
    ids = np.array([r.ids[-1] for r in rounds], np.int32)
    pos = np.array([r.first + len(r.odds) for r in rounds], np.int32)
    rows, starts, lo = PagePool.rows(tables, np.arange(n), pos), np.arange(n + 1, dtype=np.int32), np.zeros(n, np.int32)
    return Batch((), (), ids, pos, starts, rows, tables, lo, pos + 1, lo[:0])


# ---- knobs


def _tensors(p: Params, facts: Facts) -> Mapping[str, Array]:
    """Of the adapters; empty: there are none."""
    if p.adapters == NONE:
        return {}
    own = [] if facts.source is None else [beside(NAME, facts)]
    if not p.adapters and not any(place.exists() for place in [*own, shipped(NAME, facts)]):
        return {}
    return find(NAME, facts, p.adapters, "exits").tensors


def _exits(p: Params, layers: int, trained: Iterable[int]) -> list[int]:
    """Ascending. trained: those that have adapters."""
    if p.exits == "auto":
        if p.controller == "static":
            raise _wrong("exits", "must name the one layer that a static controller exits after")
        even = {round(layers * i / (AUTO + 1)) for i in range(1, AUTO + 1)}
        return sorted((set(trained) or even) & set(range(1, layers)))
    try:
        exits = sorted({int(n) for n in p.exits.split("+")})
    except ValueError:
        raise _wrong("exits", f"must be auto or layers with + between, such as 4+8, not {p.exits!r:.40}") from None
    if exits[0] < 1 or exits[-1] >= layers:
        raise _wrong("exits", f"must be layers between 1 and {layers - 1} of this model, not {p.exits!r:.40}")
    if p.controller == "static" and len(exits) > 1:
        raise _wrong("exits", f"must name one layer where controller is static, not {p.exits!r:.40}")
    return exits


def _check(p: Params) -> None:
    if p.controller not in {"del", "dele", "static"}:
        raise _wrong("controller", f"must be del, dele or static, not {p.controller!r:.40}")
    if p.cost not in {"measured", "layers"}:
        raise _wrong("cost", f"must be measured or layers, not {p.cost!r:.40}")
    if not 0 < p.omega <= 1:
        raise _wrong("omega", f"must be above 0 and at most 1, not {p.omega}")
    if not 1 <= p.max_draft <= MOST:
        raise _wrong("max_draft", f"must be between 1 and {MOST}, not {p.max_draft}")
    if p.controller == "static" and not 1 <= p.length <= p.max_draft:
        raise _wrong("length", f"must be between 1 and max_draft = {p.max_draft}, not {p.length}")
    for name, low in (("shadow_every", 1), ("vocab", 0), ("rest", 0)):
        if getattr(p, name) < low:
            raise _wrong(name, f"must be at least {low}, not {getattr(p, name)}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": Del(p, facts)}
