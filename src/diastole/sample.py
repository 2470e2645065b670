"""Choosing tokens: the chain from logits to a token, and noise that depends on the request alone.

Order of the chain: logit bias, penalties, grammar, temperature, top-k, top-p, min-p, then argmax(log p + Gumbel noise),
which draws from p exactly (Gumbel-max). The noise of token id v at position t is a hash of (seed, choice, t, v):
nothing that happens in other streams, batches or steps can change it, and a drafter that adds the same noise proposes
the same token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diastole.kernels.draw import sample, stream_key, wish
from diastole.params import SamplingParams
from diastole.text.grammar import Guide
from diastole.types import Array


class Chosen(NamedTuple):
    """A token, and where asked its log probability under the model with the likeliest alternatives."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The choosing state of one stream.

    Args:
        params: what was asked; ``params.seed`` must be set by whoever admitted the request.
        prompt: prompt ids, which the repetition penalty counts as seen.
        index: which choice of the request this is.
        guide: through the grammar that the text must match.
    """

    __slots__ = ("_counts", "_prompt", "adjusts", "guide", "params", "penalised", "plain", "wish")

    def __init__(self, params: SamplingParams, prompt: Sequence[int], index: int, guide: Guide | None = None) -> None:
        self.params, self.guide = params, guide
        self.wish = wish(
            params.temperature, params.top_k, params.top_p, params.min_p, stream_key(params.seed or 0, index)
        )
        self._prompt = frozenset(prompt) if params.repetition_penalty != 1 else frozenset()
        self._counts: Counter[int] = Counter()
        self.penalised = bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)
        self.adjusts = self.penalised or bool(params.logit_bias) or guide is not None
        self.plain = not self.penalised and params.logprobs is None and guide is None  # there is nothing to note

    def fork(self, index: int) -> Sampler:
        """The same request's other choice, before anything was chosen."""
        twin = Sampler(self.params, (), index, None if self.guide is None else self.guide.fork())
        twin._prompt = self._prompt
        return twin

    def adjust(self, logits: Array) -> Array:
        """Logit bias, penalties and grammar: logits (V,) -> (V,), the same array if nothing applies."""
        p = self.params
        if p.logit_bias:
            logits = logits.copy()
            ids = np.fromiter(p.logit_bias, np.int64, len(p.logit_bias))
            logits[ids] += np.fromiter(p.logit_bias.values(), np.float32, len(ids))
        seen = self._prompt | self._counts.keys()
        if p.repetition_penalty != 1 and seen:
            logits = logits.copy()
            ids = np.fromiter(seen, np.int64, len(seen))
            at = logits[ids]
            logits[ids] = np.where(at > 0, at / p.repetition_penalty, at * p.repetition_penalty)
        if self._counts and (p.presence_penalty or p.frequency_penalty):
            logits = logits.copy()
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(ids))
            logits[ids] -= np.float32(p.presence_penalty) + np.float32(p.frequency_penalty) * times
        return logits if self.guide is None else self.guide.restrict(logits)

    def saw(self, token: int) -> None:
        """Note a token of the text, whoever chose it."""
        if self.penalised:
            self._counts[token] += 1
        if self.guide is not None:
            self.guide.take(token)

    def take(self, token: int, logits: Array, row: int) -> Chosen:
        """Note what was chosen; logits (B, V): the model's own, of which this is a row."""
        self.saw(token)
        k = self.params.logprobs
        return Chosen(token) if k is None else _with_logprobs(logits[row], token, k)


def _with_logprobs(logits: Array, token: int, k: int) -> Chosen:
    top = logits.max()
    total = float(top) + float(np.log(np.exp((logits - top).astype(np.float64)).sum()))
    best: tuple[tuple[int, float], ...] = ()
    if k:
        ids = np.argpartition(logits, -k)[-k:]
        ids = ids[np.lexsort((ids, -logits[ids]))]
        best = tuple((int(i), float(logits[i]) - total) for i in ids)
    return Chosen(token, float(logits[token]) - total, best)


class SomeFailed(Exception):
    """Choosing failed for some samplers: by their index the errors, and the tokens of all others."""

    def __init__(self, errors: dict[int, Exception], chosen: dict[int, Chosen]) -> None:
        super().__init__(f"choosing failed for {len(errors)} of {len(errors) + len(chosen)} texts")
        self.errors, self.chosen = errors, chosen


def choose_all(
    samplers: Sequence[Sampler], logits: Array, positions: Sequence[int], rows: Sequence[int] | None = None
) -> list[Chosen]:
    """One token for each sampler: logits (R, V) float32, left as they are; rows: of these, None: one after the other.

    Raises:
        SomeFailed: an error for some of them, each on its own account.
    """
    try:
        ids = draw(samplers, logits, positions, rows)
        if all(s.plain for s in samplers):
            return [Chosen(i) for i in ids]
    except Exception:
        return _each(samplers, logits, positions, rows or range(len(samplers)))
    return _noted(samplers, logits, rows or range(len(samplers)), dict(enumerate(ids)), {})


def draw(
    samplers: Sequence[Sampler], logits: Array, positions: Sequence[int], rows: Sequence[int] | None = None
) -> list[int]:
    """Ids, not yet noted anywhere: it can be done again."""
    out = np.empty(len(samplers), np.int64)
    adjusted = [i for i, s in enumerate(samplers) if s.adjusts]
    at = range(len(samplers)) if rows is None else rows
    sample(
        logits,
        {i: samplers[i].adjust(logits[at[i]]) for i in adjusted},
        np.frombuffer(b"".join([s.wish for s in samplers]), np.uint8),
        np.array(positions, np.int64),
        out,
        None if rows is None else np.array(rows, np.int64),
    )
    ids: list[int] = out.tolist()
    return ids


def _each(samplers: Sequence[Sampler], logits: Array, positions: Sequence[int], rows: Sequence[int]) -> list[Chosen]:
    """Row by row, since together they failed."""
    ids: dict[int, int] = {}
    errors: dict[int, Exception] = {}
    for i, sampler in enumerate(samplers):
        try:
            ids[i] = draw([sampler], logits, positions[i : i + 1], rows[i : i + 1])[0]
        except Exception as e:  # whatever it is, the others are not to blame
            errors[i] = e
    return _noted(samplers, logits, rows, ids, errors)


def _noted(
    samplers: Sequence[Sampler],
    logits: Array,
    rows: Sequence[int],
    ids: dict[int, int],
    errors: dict[int, Exception],
) -> list[Chosen]:
    chosen: dict[int, Chosen] = {}
    for i, id in ids.items():
        try:
            chosen[i] = samplers[i].take(id, logits, rows[i])
        except Exception as e:  # as above
            errors[i] = e
    if errors:
        raise SomeFailed(errors, chosen)
    return [*chosen.values()]
