"""Plain ways to choose what a decoding token attends to of its prompt, chunk by chunk: to measure techniques beside.

All of them choose the same number of tokens of the same part of the prompt, over exact keys, and attend to all that
comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from diastole.bench.rig import Rig
from diastole.bench.watching import inside
from diastole.nn.inside import Inside
from diastole.nn.selection import Tokens, decoding
from diastole.slots import View
from diastole.state.pages import PAGE
from diastole.types import Array, KVFormat


class Rule(Protocol):
    """Scores of chunks of ``size`` tokens."""

    size: int

    def prepare(self, keys: Array) -> Array:
        """What it keeps of a layer's rotated keys (n, Hkv, D), n a multiple of ``size``."""
        ...

    def scores(self, kept: Array, q: Array) -> Array:
        """q (Hkv, G, D), times the scale of attention -> logits (Hkv, G, n / size)."""
        ...


class Landmarks:
    """The mean of a chunk's keys."""

    size = 8

    def prepare(self, keys: Array) -> Array:
        mean: Array = keys.reshape(-1, self.size, *keys.shape[1:]).mean(1)
        return mean

    def scores(self, kept: Array, q: Array) -> Array:
        return np.einsum("cgd,ghd->ghc", kept, q)


class Bounds:
    """Quest: the most that any key between a page's least and greatest channels could score."""

    size = 16

    def prepare(self, keys: Array) -> Array:
        pages = keys.reshape(-1, self.size, *keys.shape[1:])
        return np.stack([pages.min(1), pages.max(1)])

    def scores(self, kept: Array, q: Array) -> Array:
        low, high = kept
        most = np.einsum("cgd,ghd->ghc", high, np.maximum(q, 0))
        return np.asarray(most + np.einsum("cgd,ghd->ghc", low, np.minimum(q, 0)))


class Recent:
    """StreamingLLM: the first four tokens and the latest."""

    size = 4

    def prepare(self, keys: Array) -> Array:
        return np.arange(len(keys) // self.size, dtype=np.float32)

    def scores(self, kept: Array, q: Array) -> Array:
        order = np.where(kept == 0, np.float32(len(kept)), kept)
        return np.broadcast_to(order, (*q.shape[:2], len(kept)))


class Random:
    """Any chunks, others for each token."""

    size = 8

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def prepare(self, keys: Array) -> Array:
        return np.empty(len(keys) // self.size)

    def scores(self, kept: Array, q: Array) -> Array:
        return np.broadcast_to(self._rng.standard_normal(len(kept), np.float32), (*q.shape[:2], len(kept)))


class Exact:
    """The largest score in a chunk: what no summary knows."""

    size = 8

    def prepare(self, keys: Array) -> Array:
        return keys

    def scores(self, kept: Array, q: Array) -> Array:
        s = np.einsum("ngd,ghd->ghn", kept, q)
        most: Array = s.reshape(*s.shape[:2], -1, self.size).max(-1)
        return most


def largest(logits: Array, count: int) -> Array:
    """Chunks (Hkv, count) in order, by the largest softmax weight of the heads that share a key: logits (Hkv, G, C)."""
    s = logits.astype(np.float64)
    s = s - s.max(-1, keepdims=True)
    weights = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    order = np.argsort(-weights.max(1), axis=-1, kind="stable")[:, :count]
    return np.sort(order, axis=-1)


class Choosing:
    """Slot ``select`` over a store of form "rows", for one stream whose first ``n`` tokens are chosen from."""

    reads = frozenset({"rows"})
    prefers: KVFormat = "rows"
    exact = False
    companion = None

    def __init__(self, rule: Rule, n: int, budget: int) -> None:
        self.rule, self.n, self.budget = rule, n // rule.size * rule.size, budget
        self._kept: dict[int, Array] = {}

    def select(self, view: View, q: Array) -> Tokens | None:
        rows = decoding(view.b, self.n)
        if rows is None:
            return None
        if view.layer not in self._kept:
            at = np.arange(self.n)
            keys, _ = view.store.read(view.layer, rows.tables[0, at // PAGE].astype(np.int64) * PAGE + at % PAGE)
            self._kept[view.layer] = self.rule.prepare(keys)
        size, groups = self.rule.size, view.pages.shape[1]
        own = np.ascontiguousarray(q[rows.which[0]]).reshape(groups, -1, q.shape[2]) * np.float32(view.scale)
        chunks = largest(self.rule.scores(self._kept[view.layer], own), self.budget // size)
        chosen = (chunks[..., None] * size + np.arange(size)).reshape(groups, -1)
        after = np.broadcast_to(np.arange(self.n, rows.hi[0]), (groups, rows.hi[0] - self.n))
        tokens = np.concatenate([chosen, after], axis=1).astype(np.int32)[None]
        return Tokens(rows.which, rows.cache_rows(tokens), np.full(tokens.shape[:2], tokens.shape[2], np.int32))


@contextmanager
def choosing(rig: Rig, rule: Rule, n: int, budget: int) -> Iterator[None]:
    """While inside, a rig of form "rows" without techniques attends by this rule."""
    with inside(rig, Inside(select=Choosing(rule, n, budget))):
        yield
