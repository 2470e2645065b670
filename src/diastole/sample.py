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

from diastole.kernels.draw import sample, stream_key
from diastole.params import SamplingParams
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
    """

    __slots__ = ("_counts", "_prompt", "adjusts", "key", "params", "penalised")

    def __init__(self, params: SamplingParams, prompt: Sequence[int], index: int) -> None:
        self.params = params
        self.key = stream_key(params.seed or 0, index)
        self._prompt = frozenset(prompt) if params.repetition_penalty != 1 else frozenset()
        self._counts: Counter[int] = Counter()
        self.penalised = bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)
        self.adjusts = self.penalised or bool(params.logit_bias)

    def fork(self, index: int) -> Sampler:
        """The same request's other choice, before anything was chosen."""
        twin = Sampler(self.params, (), index)
        twin._prompt = self._prompt
        return twin

    def adjust(self, logits: Array) -> Array:
        """Logit bias and penalties: logits (V,) -> (V,), the same array if nothing applies."""
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

    def take(self, token: int, logits: Array) -> Chosen:
        """Note what was chosen; logits (V,): the model's own."""
        if self.penalised:
            self._counts[token] += 1
        return Chosen(token) if self.params.logprobs is None else _with_logprobs(logits, token, self.params.logprobs)


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
    """One token for each row: logits (B, V) float32, left as they are."""
    rows = list(logits)
    wishes = [s.params for s in samplers]
    out = np.empty(len(samplers), np.int64)
    sample(
        [s.adjust(row) if s.adjusts else row for s, row in zip(samplers, rows, strict=True)],
        np.array([p.temperature for p in wishes], np.float32),
        np.array([p.top_k for p in wishes], np.int32),
        np.array([p.top_p for p in wishes], np.float32),
        np.array([p.min_p for p in wishes], np.float32),
        np.array([s.key for s in samplers], np.uint64),
        np.array(positions, np.int64),
        out,
    )
    return [s.take(i, row) for s, i, row in zip(samplers, out.tolist(), rows, strict=True)]
