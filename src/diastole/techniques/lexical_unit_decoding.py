"""Lexical unit decoding: one pass gives a token, and where the model is sure the rest of a phrase with it.

Sun, Zhang, Lin, Zhang, Zhang, Wang, Chen, Song, Zhang, Gai, Xiong: "Decoding at the Speed of Thought: Harnessing
Parallel Decoding of Lexical Units for LLMs", LREC-COLING 2024, arXiv 2405.15208. The model itself was tuned to read a
placeholder as a token that it has not seen yet (``diastole train lexical-units``); behind the text's last token stand
``lookahead`` of them, and what each says is a candidate: the first for the token after the next one, and so on.

    rows        the  cat  sat   [ ]  [ ]  [ ]       a placeholder has the position of the token that it stands for
    say                   on    the  mat   .        token 0, then three candidates

``verify=true``: candidates are a draft. The next pass reads them as real tokens and keeps those that it chooses itself,
so the text is exactly the model's. ``verify=false`` is the paper's: a candidate is said at once while it and all before
it are as likely as ``confidence``, and the next pass only computes its keys and values. That changes texts. What a
request asks for then holds as follows: temperature, top-k, top-p, min-p and the seed decide token 0 alone, candidates
are the likeliest tokens; bias, penalties, grammar, stops and lengths hold for every token; log probabilities of
candidates are those of their placeholders, not of the model given the tokens before them; with n > 1 the first token
comes alone.

Ours: ``cumulative`` asks the same of the product of probabilities (each is given that those before it are right). With
``verify=false`` placeholders stay within the page of the last token, which has room for them without fail, so that a
text never depends on how full the memory is; with ``verify=true`` they take a further page if there is one. In either
case their rows lie behind all that a stream has absorbed: they are never shared, and the next pass writes over them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diastole.slots import Facts, KVStore
from diastole.slots_drafts import Span
from diastole.spec.guesser import Guesser
from diastole.spec.verify import Coupled, Guess, Verdict, ends
from diastole.state.lease import Lease, Pool
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Batch, Draft, Grant, Sown, Stream, UserError

if TYPE_CHECKING:
    from diastole.nn.decoder import Decoder
    from diastole.sample import Chosen, Sampler

NEEDS = frozenset({"paged_kv"})
NAME = "lexical-unit-decoding"
MOST = 16  # placeholders behind one text
REPEATED = 0.99  # a candidate that repeats the token before it must be likelier than this
KEY = "placeholder_token_id"  # in the model's config.json, or in a file beside a single one
_LARGEST = 16 << 20  # bytes of that file


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    lookahead: int = 4  # placeholders behind each text
    confidence: float = 0.9  # least probability of a candidate; 1: none ever passes, and there are no placeholders
    cumulative: bool = False  # and of all candidates up to it together
    verify: bool = True  # false: candidates are said at once, and the text is no longer exactly the model's
    repeat_guard: bool = True  # a token twice in a row must be nearly certain
    placeholder: int = -1  # token id; -1: the one that the model's files name


class Trust:
    """Which candidates are believed."""

    def __init__(self, p: Params) -> None:
        self.p = p

    def enough(self, likely: float, together: float, token: int, before: int) -> bool:
        """Whether to go on with a candidate.

        Args:
            likely: its probability.
            together: that of all candidates up to it.
            before: the token that it would follow.
        """
        p = self.p
        if not likely >= p.confidence or (p.cumulative and not together >= p.confidence):
            return False
        return not (p.repeat_guard and token == before) or likely > REPEATED

    def first(self, tokens: Sequence[int], odds: Sequence[float], before: int) -> int:
        """How many of a pass's candidates are believed."""
        together = 1.0
        for i, (token, likely) in enumerate(zip(tokens, odds, strict=True)):
            together *= likely
            if not self.enough(likely, together, token, before):
                return i
            before = token
        return len(tokens)


class Candidates(NamedTuple):
    """What the placeholders of one pass said."""

    known: int  # tokens of the text where the first of them comes next
    tokens: list[int]
    odds: list[float]


class Placeholders(Guesser):
    """Slot ``draft``: lays placeholders behind texts.

    Attributes:
        said: with ``verify=false``, logits (n, V) of the last pass's placeholders, by the sampler of their text; the
            next pass writes over them.
    """

    def __init__(self, p: Params, token: int) -> None:
        self.p, self.token, self.trust = p, token, Trust(p)
        self.exact, self.most = p.verify, p.lookahead if p.verify else 0
        self.lookahead = 0 if p.confidence == 1 else p.lookahead
        self.said: dict[Sampler, Array] = {}
        self._asked: dict[Stream, int] = {}  # how much may be guessed behind them

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        self.spans = spans
        return {}

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        self._asked = dict(zip(streams, lengths, strict=True))
        return [self._guess(s, n) for s, n in zip(streams, lengths, strict=True)]

    def _guess(self, stream: Stream, n: int) -> Draft:
        found: Candidates | None = stream.scratch.get(NAME)
        if found is None or found.known != stream.known:  # a guess before them was wrong
            return Draft(())
        n = min(n, self.trust.first(found.tokens, found.odds, int(stream.own.tip)))
        return Draft(found.tokens[:n], odds=found.odds[:n])

    def ready(self, batch: Batch) -> Batch:
        self.said.clear()
        asked, self._asked = self._asked, {}
        grown: list[tuple[Lease, int]] = []
        counts = [self._count(s, n, asked, grown) for s, n in batch.grants]
        return replace(batch, relay=partial(self._relay, counts, grown)) if any(counts) else batch

    def _count(self, stream: Stream, n: int, asked: Mapping[Stream, int], grown: list[tuple[Lease, int]]) -> int:
        """How many placeholders stand behind the ``n`` rows of a stream. grown: is told of leases that take a page for
        them, and how many units these had."""
        if not stream.speaks or n < stream.left or stream.own.twins:
            return 0
        end = stream.done + n
        count = min(self.lookahead, stream.own.limit - end - (2 if self.exact else 1))
        if self.exact and stream.left == 1:  # whoever paces may want fewer guesses, or none
            count = min(count, asked.get(stream, 0))
        count = min(count, *[span(stream) - n for span in self.spans]) if self.spans else count
        here = min(count, -end % PAGE)
        if count <= here:
            return max(count, 0)
        lease = stream.leases["kv"]
        if not self.exact or not lease.pool.grow(lease, end + count):
            return here
        grown.append((lease, end))
        return count

    def _relay(
        self,
        counts: Sequence[int],
        grown: Sequence[tuple[Lease, int]],
        decoder: Decoder,
        b: Batch,
        state: Mapping[str, Any],
    ) -> Array:
        try:
            logits = decoder.forward(extended(b, counts, self.token), state)
        finally:
            for lease, units in grown:
                lease.pool.truncate(lease, units)
        at = len(b.want)
        for (stream, n), count in zip(b.grants, counts, strict=True):
            if count:
                self._note(stream, stream.done + n, logits[at : at + count])
            at += count
        return logits[: len(b.want)]

    def _note(self, stream: Stream, end: int, rows: Array) -> None:
        """What placeholders at ``end`` and behind said: rows (n, V)."""
        rows[:, self.token] = -np.inf
        if self.exact:
            found = [likeliest(row) for row in rows]
            stream.scratch[NAME] = Candidates(end + 1, [token for token, _ in found], [p for _, p in found])
        else:
            self.said[stream.own.sampler] = rows


class AtOnce(Coupled):
    """Slot ``verify``: the token that the model chooses, then candidates of the same pass while they are believed."""

    ahead = True

    def __init__(self, placeholders: Placeholders) -> None:
        self.placeholders = placeholders

    def accept(self, guesses: Sequence[Guess], logits: Array) -> Verdict:
        verdict = super().accept(guesses, logits)
        for i, guess in enumerate(guesses):
            rows = self.placeholders.said.pop(guess.sampler, None)
            if rows is None or i in verdict.errors or len(verdict.nodes[i]) < len(guess.draft.tokens):
                continue
            try:
                self._go_on(guess, verdict.chosen[i], rows)
            except Exception as e:  # whatever it is, the others are not to blame
                verdict.errors[i] = e
        return verdict

    def _go_on(self, guess: Guess, said: list[Chosen], rows: Array) -> None:
        """Say more: rows (n, V), the placeholders' logits."""
        sampler, together = guess.sampler, 1.0
        for at, row in enumerate(rows):
            if ends(guess, said[-1], len(said)):
                return
            token, likely = likeliest(sampler.adjust(row) if sampler.adjusts else row)
            together *= likely
            stuck = sampler.guide is not None and sampler.guide.finish is not None  # no token may come next
            if stuck or not self.placeholders.trust.enough(likely, together, token, said[-1].id):
                return
            said.append(sampler.take(token, rows, at))


def likeliest(row: Array) -> tuple[int, float]:
    """The token that comes first in logits (V,), and its probability."""
    token = int(row.argmax())
    return token, 1 / float(np.exp((row - row[token]).astype(np.float64)).sum())


def extended(b: Batch, counts: Sequence[int], token: int) -> Batch:
    """The batch with placeholders behind each stream's rows, which see all before them; their outputs are wanted last.

    Args:
        b: no draft in it branches.
        counts: (B,) placeholders.
        token: their id.
    """
    more = np.array(counts, np.int32)
    starts = b.starts.copy()
    starts[1:] += np.cumsum(more, dtype=np.int32)
    streams = np.arange(len(more), dtype=np.int32)
    real = np.arange(len(b.pos), dtype=np.int32) + np.repeat(starts[:-1] - b.starts[:-1], np.diff(b.starts))
    owner = np.repeat(streams, more)
    nth = np.arange(len(owner), dtype=np.int32) - np.repeat(np.cumsum(more, dtype=np.int32) - more, more)
    added = (starts[1:] - more)[owner] + nth
    pos = np.array([s.done + n for s, n in b.grants], np.int32)[owner] + nth
    tables = PagePool.tables([leases["kv"] for leases in b.leases])

    def joined(old: Array, new: Array | int) -> Array:
        out = np.empty(len(real) + len(added), old.dtype)
        out[real], out[added] = old, new
        return out

    return replace(
        b,
        grants=tuple([Grant(s, n + c) for (s, n), c in zip(b.grants, counts, strict=True)]),
        inputs=joined(b.inputs, token),
        pos=joined(b.pos, pos),
        starts=starts,
        rows=joined(b.rows, PagePool.rows(tables, owner, pos)),
        tables=tables,
        lo=joined(b.lo, 0),
        hi=joined(b.hi, pos + 1),
        want=np.concatenate([real[b.want], added]),
        sown=tuple([None if x is None else Sown(x.draft, real[list(x.rows)].tolist()) for x in b.sown]),
        relay=None,
        tap=None if b.tap is None else replace(b.tap, rows=real[b.tap.rows]),
    )


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if not 1 <= p.lookahead <= MOST:
        raise _wrong("lookahead", f"must be between 1 and {MOST}, not {p.lookahead}")
    if not 0 < p.confidence <= 1:
        raise _wrong("confidence", f"must be above 0 and at most 1, not {p.confidence}")
    if facts.decoder is None:
        raise UserError(f"{NAME} needs a decoder-only language model", param="use")
    placeholders = Placeholders(p, _token(p, facts.source, facts.decoder.vocab))
    return {"draft": placeholders} if p.verify else {"draft": placeholders, "verify": AtOnce(placeholders)}


def _token(p: Params, source: Path | None, vocab: int) -> int:
    """The placeholder.

    Raises:
        UserError: the model has none, or it is outside the vocabulary.
    """
    token = p.placeholder if p.placeholder != -1 else _named(source)
    if token is None:
        raise UserError(
            f"{NAME} needs a model that was tuned to read a placeholder, and this one's files name none ({KEY}); "
            "make one with: diastole train lexical-units",
            param="use",
        )
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
        raise _wrong("placeholder", f"must be a token id from 0 to {vocab - 1}, not {token!r:.40}")
    return token


def _named(source: Path | None) -> object:
    """What the files of a model say; None: nothing."""
    if source is None:
        return None
    place = source / "config.json" if source.is_dir() else source.with_name(f"{source.stem}.{NAME}.json")
    try:
        if place.stat().st_size > _LARGEST:
            return None
        found = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found.get(KEY) if isinstance(found, dict) else None


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")
