"""Trees of guesses put together of what is thought of for each position on its own."""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from diastole.types import Array, Draft


def likeliest(logits: Array, k: int) -> tuple[Array, Array]:
    """logits (R, n) -> the k largest of each row, largest first: places (R, k) and probabilities (R, k)."""
    k = min(k, logits.shape[1])
    best = np.argpartition(logits, -k, 1)[:, -k:] if k < logits.shape[1] else np.tile(np.arange(k), (len(logits), 1))
    order = np.lexsort((best, -np.take_along_axis(logits, best, 1)), axis=1)  # ties: the lower place first
    best = np.take_along_axis(best, order, 1)
    most = logits.max(1, keepdims=True)
    odds = np.exp(np.take_along_axis(logits, best, 1) - most) / np.exp(logits - most).sum(1, keepdims=True)
    return best, odds


def tree(ids: Array, odds: Array, most: int) -> Draft:
    """The ``most`` likeliest beginnings of what is put together of one token for each position.

    Args:
        ids: (N, k): tokens that are thought of for the next N positions, likeliest first.
        odds: (N, k): their probabilities.
    """
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    words, p = ids.tolist(), odds.tolist()
    # Of what is longer than a beginning, and of those with a less likely last token, only the next is put in line: it
    # cannot be likelier than the beginning itself.
    line = [(-p[0][0], 0, 1.0, -1, 0, 0)]  # probability (negative), turn, that of the parent, parent, position, rank
    turns = itertools.count(1)
    while line and len(tokens) < most:
        gain, _, before, parent, at, rank = heapq.heappop(line)
        if rank + 1 < len(p[at]):
            heapq.heappush(line, (-before * p[at][rank + 1], next(turns), before, parent, at, rank + 1))
        if at + 1 < len(p):
            heapq.heappush(line, (gain * p[at + 1][0], next(turns), -gain, len(tokens), at + 1, 0))
        tokens.append(words[at][rank])
        parents.append(parent)
        chances.append(p[at][rank])
    return Draft(tokens, parents, None, chances)
