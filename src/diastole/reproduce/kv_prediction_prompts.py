"""Prompts with what follows them: how likely a model finds it, and how long the first answer takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diastole.bench.rig import Rig
from diastole.reproduce.timing import Timings
from diastole.types import Array, Stream

FIRST = 4  # tokens of a prompt that are kept where others are dropped: all heads look at them


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and what follows it: (n,) and (m,) int32."""

    prompt: Array
    rest: Array


@dataclass(frozen=True, slots=True)
class Side:
    """A model that goes on with texts; ``cut`` says what it reads of a prompt."""

    rig: Rig
    allow: bool = False  # approximate prefill
    cut: Callable[[Array], Array] = lambda prompt: prompt

    def open(self, prompt: Array) -> Stream:
        stream = self.rig.open(self.cut(prompt))
        stream.req = replace(stream.req, params=replace(stream.req.params, allow_approximate_prefill=self.allow))
        return stream

    def first(self, prompt: Array) -> Array:
        """Logits (V,) behind a prompt."""
        stream = self.open(prompt)
        try:
            return self.rig.absorb(stream)
        finally:
            self.rig.close(stream)

    def logits(self, text: Text) -> Array:
        """(m, V): of each token that follows, from what comes before it."""
        stream = self.open(text.prompt)
        try:
            found = [self.rig.absorb(stream)]
            for token in text.rest[:-1].tolist():
                found.append(self.rig.step({stream: token})[0])
            return np.stack(found)
        finally:
            self.rig.close(stream)


def losses(logits: Array, rest: Array) -> Array:
    """Nats of each token: logits (m, V), rest (m,) -> (m,)."""
    wide = logits.astype(np.float64)
    most = wide.max(-1)
    found: Array = np.log(np.exp(wide - most[:, None]).sum(-1)) + most - wide[np.arange(len(rest)), rest]
    return found


def divergence(true: Array, other: Array) -> float:
    """Kullback-Leibler, nats, of logits (V,) from true ones."""
    p, q = (
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64) - x.max()).sum()) - x.max() for x in (true, other)
    )
    return float((np.exp(p) * (p - q)).sum())


def scattered(kept: int, seed: int) -> Callable[[Array], Array]:
    """Cuts prompts to so many tokens by chance; the first few and the last one stay."""

    def cut(prompt: Array) -> Array:
        n = len(prompt)
        if kept >= n:
            return prompt
        inner = np.random.default_rng([seed, n]).permutation(np.arange(FIRST, n - 1))[: max(kept - FIRST - 1, 0)]
        return prompt[np.concatenate([np.arange(min(FIRST, n - 1)), np.sort(inner), [n - 1]])]

    return cut


def recent(kept: int) -> Callable[[Array], Array]:
    """Cuts prompts to their last tokens; the first few stay."""

    def cut(prompt: Array) -> Array:
        return prompt if kept >= len(prompt) else np.concatenate([prompt[:FIRST], prompt[FIRST - kept :]])

    return cut


def as_fast(seconds: float, times: Mapping[int, float]) -> int:
    """Tokens of a prompt that are read in so many seconds: between those that were measured, by tokens."""
    tokens = sorted(times)
    measured = np.maximum.accumulate([times[n] for n in tokens])
    return max(int(np.interp(seconds, measured, tokens)), FIRST + 2)


def medians(times: Timings, prefix: str, tokens: Sequence[int]) -> dict[int, float]:
    """Seconds by tokens, of turns that are named by them."""
    return {n: times.median(f"{prefix}{n}") for n in tokens}
