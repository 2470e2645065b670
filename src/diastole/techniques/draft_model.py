"""Draft model: a smaller model with the same tokens guesses one after the other, with keys and values of its own.

Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", ICML 2023, arXiv 2211.17192;
Chen, Borgeaud, Irving and others: "Accelerating Large Language Model Decoding with Speculative Sampling", 2023,
arXiv 2302.01318. Each guess is what the request's own sampler would choose from the smaller model, with the noise of
that position: where both models think alike a guess is right, greedy or sampled, as the default verifier compares them.
``rejection`` wants to know what guesses were drawn from: ``law=true``.

Ours: a prompt is read in pieces, one per step, so that nobody waits long for it; memory is bounded, and streams that
find no room there go on without guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from diastole import registry
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Loader, WeightFormat
from diastole.nn.tokens import difference
from diastole.sample import Sampler, draw
from diastole.slots import Facts, KVStore
from diastole.slots_drafts import Span
from diastole.spec.guesser import Guesser
from diastole.spec.rejection import law
from diastole.state.kv import PagedKV
from diastole.state.lease import Lease, Pool
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Batch, Draft, Stream, UserError
from diastole.weights import open_checkpoint

NEEDS: frozenset[str] = frozenset()
NAME = "draft-model"
MOST = 64  # guesses that one step may verify
CHUNK = 512  # tokens of a stream that are read in one step


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    model: str = ""  # the smaller model's file or directory
    k: int = 4  # tokens guessed at once, at most
    p_min: float = 0.0  # a guess that the smaller model holds less likely than this is the last
    law: bool = False  # tell the verifier what guesses were drawn from
    weights: str = "auto"  # format of its weights: as they are ("auto"), f32, bf16, q8 or q4
    room: int = 256  # MiB for its keys and values


@dataclass(slots=True)
class _Past:
    """What the smaller model has read of a stream."""

    read: int = 0  # tokens, from the start
    ahead: list[int] = field(default_factory=list)  # guesses that it has read behind them

    def settle(self, ids: Array) -> None:
        """Of the guesses, those count as read that have come true: ids (known,). The last token is read again in any
        case, to say what follows it."""
        for token in self.ahead:
            if self.read >= len(ids) or ids[self.read] != token:
                break
            self.read += 1
        self.read, self.ahead = min(self.read, len(ids) - 1), []


@dataclass(eq=False, slots=True)
class _Round:
    """One stream's guesses while they grow."""

    stream: Stream
    lease: Lease
    most: int
    tokens: list[int] = field(default_factory=list)
    odds: list[float] = field(default_factory=list)
    laws: list[Array] = field(default_factory=list)

    @property
    def sampler(self) -> Sampler:
        sampler: Sampler = self.stream.own.sampler
        return sampler

    def draft(self) -> Draft:
        q = np.stack(self.laws).astype(np.float32) if self.laws else None
        return Draft(self.tokens, None, q, self.odds)


class DraftModel(Guesser):
    """Slot ``draft``.

    Args:
        model: guesses.
        vocab: tokens of the model that verifies.
    """

    def __init__(self, p: Params, model: Decoder, vocab: int) -> None:
        self.p, self.model, self.vocab, self.most = p, model, vocab, p.k

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        spec, store = self.model.state_specs()["kv"], PagedKV("bf16")
        store.alloc(spec, 1, self.model.ops)  # tells bytes_per_token
        pages = min(streams * -(-self.model.context // PAGE), int((self.p.room << 20) / (store.bytes_per_token * PAGE)))
        if pages < 1:
            least = -(-int(store.bytes_per_token * PAGE) >> 20)
            raise _wrong("room", f"must be at least {least} MiB, a page of this model, not {self.p.room}")
        store.alloc(spec, pages, self.model.ops)
        self.pool, self.state = PagePool(pages, store), {"kv": store}
        return {NAME: self.pool}

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        wishes = [(s, n) for s, n in zip(streams, lengths, strict=True) if n > 0]
        rounds = [r for r in (self._begin(s, n) for s, n in wishes) if r is not None]
        growing = self._read(rounds)
        while growing:
            growing = self._guess(growing)
        for r in rounds:
            r.stream.scratch[NAME].ahead = r.tokens[:-1]
        found = {r.stream: r.draft() for r in rounds if r.tokens}
        return [found.get(s, Draft(())) for s in streams]

    def _begin(self, stream: Stream, n: int) -> _Round | None:
        """None: there is no room for this stream, or it is nothing that the smaller model can read."""
        if stream.known + n > self.model.context:
            return None
        lease: Lease | None = stream.leases.get(NAME)
        if lease is None:  # of a stream that is new, or was read and given up
            lease = stream.leases[NAME] = self.pool.lease()
            stream.scratch[NAME] = _Past()
        past: _Past = stream.scratch[NAME]
        past.settle(stream.own.ids[: stream.known])
        self.pool.truncate(lease, past.read)
        strange = stream.own.ids[past.read : stream.known].max() >= self.model.vocab  # a token that it does not have
        if strange or not self.pool.grow(lease, stream.known + n - 1):
            return None
        guided = stream.own.sampler.guide is not None  # what a grammar allows behind a guess it does not say
        return _Round(stream, lease, min(n, 1 if guided else self.p.k))

    def _read(self, rounds: Sequence[_Round]) -> list[_Round]:
        """Read what was said since; those that have read all of it have a first guess, and may have more."""
        pasts: list[_Past] = [r.stream.scratch[NAME] for r in rounds]
        ends = [min(r.stream.known, past.read + CHUNK) for r, past in zip(rounds, pasts, strict=True)]
        rows = [r.stream.own.ids[past.read : end] for r, past, end in zip(rounds, pasts, ends, strict=True)]
        through = [r for r, end in zip(rounds, ends, strict=True) if end == r.stream.known]
        if rounds:
            wanted = [end == r.stream.known for r, end in zip(rounds, ends, strict=True)]
            logits = self._run([r.lease for r in rounds], [past.read for past in pasts], rows, wanted)
            self._choose(through, logits)
        for past, end in zip(pasts, ends, strict=True):
            past.read = end
        return self._going(through)

    def _guess(self, rounds: Sequence[_Round]) -> list[_Round]:
        """One more guess for each."""
        firsts = [r.stream.known + len(r.tokens) - 1 for r in rounds]
        rows = [np.array(r.tokens[-1:], np.int32) for r in rounds]
        self._choose(rounds, self._run([r.lease for r in rounds], firsts, rows, [True] * len(rounds)))
        return self._going(rounds)

    def _going(self, rounds: Sequence[_Round]) -> list[_Round]:
        return [r for r in rounds if r.tokens and len(r.tokens) < r.most and r.odds[-1] >= self.p.p_min]

    def _run(
        self, leases: Sequence[Lease], firsts: Sequence[int], rows: Sequence[Array], wanted: Sequence[bool]
    ) -> Array:
        """Read rows of ids, each lease's from a position on; logits (W, V) behind the wanted ones."""
        counts = [len(ids) for ids in rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        pos = np.concatenate([np.arange(a, a + n, dtype=np.int32) for a, n in zip(firsts, counts, strict=True)])
        tables = PagePool.tables(leases)
        places = PagePool.rows(tables, np.repeat(np.arange(len(rows)), counts), pos)
        lo, want = np.zeros_like(pos), starts[1:][np.array(wanted, bool)] - 1
        return self.model.forward(
            Batch((), (), np.concatenate(rows), pos, starts, places, tables, lo, pos + 1, want), self.state
        )

    def _choose(self, rounds: Sequence[_Round], logits: Array) -> None:
        """A guess for each, of logits (R, V)."""
        if not rounds:
            return
        logits = self._fitted(logits)
        samplers = [r.sampler for r in rounds]
        ids = draw(samplers, logits, [r.stream.known + len(r.tokens) for r in rounds])
        most = logits.max(1)
        odds = np.exp(logits[np.arange(len(ids)), ids] - most) / np.exp(logits - most[:, None]).sum(1)
        for i, (r, token) in enumerate(zip(rounds, ids, strict=True)):
            r.tokens.append(token)
            r.odds.append(float(odds[i]))
            if self.p.law and r.sampler.params.temperature > 0:
                r.laws.append(law(r.sampler, logits[i]))

    def _fitted(self, logits: Array) -> Array:
        """As wide as the other model's: some have rows that stand for no token."""
        n, width = logits.shape
        if width >= self.vocab:
            return np.ascontiguousarray(logits[:, : self.vocab])
        return np.concatenate([logits, np.full((n, self.vocab - width), -np.inf, np.float32)], 1)


# ---- the smaller model


def opened(p: Params, facts: Facts) -> Decoder:
    """Load it.

    Raises:
        UserError: there is none, or its tokens are others.
    """
    path = Path(p.model).expanduser()
    if not p.model or not path.exists():
        raise _wrong("model", f"must be the file or directory of a smaller model, not {p.model!r:.80}")
    if facts.source is not None:
        other = difference(facts.source, path)
        if other:
            raise _wrong("model", f"{path.name} has other tokens: {other}")
    assert facts.ops is not None
    checkpoint = open_checkpoint(path)
    try:
        kind = str(checkpoint.config.get("model_type"))
        load = Loader(facts.ops, checkpoint, cast(WeightFormat, p.weights))
        model: Decoder = registry.model(kind).build(load, checkpoint.config, 0)
    finally:
        checkpoint.close()
    return model


def _check(p: Params) -> None:
    if not 1 <= p.k <= MOST:
        raise _wrong("k", f"must be between 1 and {MOST}, not {p.k}")
    if not 0 <= p.p_min < 1:
        raise _wrong("p_min", f"must be at least 0 and below 1, not {p.p_min}")
    if p.weights not in {"auto", "compact", "f32", "bf16", "q8", "q4"}:
        raise _wrong("weights", f"must be auto, compact, f32, bf16, q8 or q4, not {p.weights!r:.40}")
    if p.room < 1:
        raise _wrong("room", f"must be at least 1 MiB, not {p.room}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    _check(p)
    if facts.decoder is None:
        raise UserError(f"{NAME} needs a language model to guess for", param="use")
    return {"draft": DraftModel(p, opened(p, facts), facts.decoder.vocab)}
