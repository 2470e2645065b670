"""Choosing tokens: the chain from logits to a token, and noise that depends on the request alone.

Order of the chain: logit bias, penalties, temperature, top-k, top-p, min-p, then argmax(log p + Gumbel noise), which
draws from p exactly (Gumbel-max). The noise of token id v at position t is a hash of (seed, choice, t, v): nothing
that happens in other streams, batches or steps can change it, and a drafter that adds the same noise proposes the same
token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diastole.kernels.draw import draw, draw_key
from diastole.params import SamplingParams
from diastole.types import Array

_WIDEST = 1024  # candidates looked at first when the nucleus is searched


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
    """

    __slots__ = ("_counts", "_index", "_prompt", "params", "plain")

    def __init__(self, params: SamplingParams, prompt: Sequence[int], index: int) -> None:
        self.params = params
        self._index = index
        self._prompt = frozenset(prompt) if params.repetition_penalty != 1 else frozenset()
        self._counts: Counter[int] = Counter()
        penalties = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        self.plain = params.temperature == 0 and not penalties and not params.logit_bias and params.logprobs is None

    def fork(self, index: int) -> Sampler:
        """The same request's other choice, before anything was chosen."""
        twin = Sampler(self.params, (), index)
        twin._prompt = self._prompt
        return twin

    def choose(self, logits: Array, position: int) -> Chosen:
        """logits (V,) float32, left as they are -> the token at ``position``."""
        p = self.params
        adjusted = self._adjust(logits)
        token = int(adjusted.argmax()) if p.temperature == 0 else self._draw(adjusted, position)
        if p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty:
            self._counts[token] += 1
        return Chosen(token) if p.logprobs is None else _with_logprobs(logits, token, p.logprobs)

    def _adjust(self, logits: Array) -> Array:
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
        return logits

    def _draw(self, logits: Array, position: int) -> int:
        ids, scores = candidates(logits, self.params)
        at = draw(scores, ids, draw_key(self.params.seed or 0, self._index, position))
        return at if ids is None else int(ids[at])


def candidates(logits: Array, p: SamplingParams) -> tuple[Array | None, Array]:
    """The tokens that top-k, top-p and min-p leave: ids (n,) int64 ascending, or None for all of them; and their
    logits / temperature (n,) float32."""
    scores = (logits / np.float32(p.temperature)).astype(np.float32, copy=False)
    ids: Array | None = None
    if 0 < p.top_k < len(scores):
        ids = np.sort(np.argpartition(scores, -p.top_k)[-p.top_k :])
        scores = scores[ids]
    if p.top_p < 1:
        keep = _nucleus(scores, p.top_p)
        ids, scores = keep if ids is None else ids[keep], scores[keep]
    if p.min_p > 0:
        likely = np.flatnonzero(scores >= scores.max() + np.log(np.float32(p.min_p)))
        ids, scores = likely if ids is None else ids[likely], scores[likely]
    return ids, scores


def _nucleus(scores: Array, top_p: float) -> Array:
    """Indices, in ascending order, of the smallest set of likeliest tokens whose mass reaches ``top_p``."""
    weights = np.exp((scores - scores.max()).astype(np.float64))
    total = weights.sum()
    # All tokens lighter than this weigh, together, less than what may be left out.
    pool = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    width = min(_WIDEST, len(pool))
    while True:
        top = pool[np.argpartition(weights[pool], -width)[-width:]] if width < len(pool) else pool
        top = top[np.lexsort((top, -weights[top]))]  # by weight, ties by id, so that ties never depend on the width
        mass = np.cumsum(weights[top])
        if mass[-1] >= top_p * total or width == len(pool):
            return np.sort(top[: int(np.searchsorted(mass, top_p * total)) + 1])
        width = min(width * 8, len(pool))


def _with_logprobs(logits: Array, token: int, k: int) -> Chosen:
    top = logits.max()
    total = float(top) + float(np.log(np.exp((logits - top).astype(np.float64)).sum()))
    best: tuple[tuple[int, float], ...] = ()
    if k:
        ids = np.argpartition(logits, -k)[-k:]
        ids = ids[np.lexsort((ids, -logits[ids]))]
        best = tuple((int(i), float(logits[i]) - total) for i in ids)
    return Chosen(token, float(logits[token]) - total, best)


def choose_all(samplers: Sequence[Sampler], logits: Array, positions: Sequence[int]) -> list[Chosen]:
    """One token for each row: logits (B, V) float32."""
    if all(s.plain for s in samplers):
        return [Chosen(int(i)) for i in logits.argmax(axis=1)]
    return [s.choose(row, at) for s, row, at in zip(samplers, logits, positions, strict=True)]
