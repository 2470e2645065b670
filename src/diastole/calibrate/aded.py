"""What follows pairs of tokens in a model's own text: counted.

    keys      (n,) uint64, the pair a << 32 | b, ascending; at the end ALONE << 32 | b: b, whatever came before it
    offsets   (n + 1,) int64: the successors of pair i are at offsets[i]..offsets[i + 1] of
    words     (m,) int32, the likeliest first, and
    weights   (m,) float32, the share of the pair's occurrences that each followed

Kept are the ``TOP`` likeliest successors of a pair, of those that came at least twice.
"""

from __future__ import annotations

import numpy as np

from diastole.calibrate.job import Job
from diastole.kernels.grams import ALONE
from diastole.types import Array, UserError

TOKENS = 4_000_000
CONTEXT = 64  # the model is not run
OWN = True  # it looks at text that the model itself has said
TOP, LEAST = 12, 2


def measure(job: Job) -> dict[str, Array]:
    """Raises:
    UserError: the texts are too short.
    """
    ids = np.asarray(job.ids, np.int64)
    if len(ids) < CONTEXT:
        raise UserError(f"the texts have {len(ids)} tokens; at least {CONTEXT} are needed", param="texts")
    found = count(ids)
    job.tell(len(ids))
    return found


def count(ids: Array, top: int = TOP, least: int = LEAST) -> dict[str, Array]:
    """ids (n,) int64 -> the arrays above."""
    first, second = (part.astype(np.uint64) for part in (ids[:-2], ids[1:-1]))
    pairs = _counted(first << np.uint64(32) | second, ids[2:], top, least)
    singles = _counted(np.uint64(ALONE << 32) | ids[:-1].astype(np.uint64), ids[1:], top, least)
    counts = np.concatenate([np.diff(offsets) for _, offsets, _, _ in (pairs, singles)])
    keys, words, weights = (np.concatenate([pairs[i], singles[i]]) for i in (0, 2, 3))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return {"keys": keys, "offsets": offsets, "words": words, "weights": weights}


def _counted(key: Array, word: Array, top: int, least: int) -> tuple[Array, Array, Array, Array]:
    """key, word (n,): what came, and what followed -> keys, offsets, words and weights as above."""
    order = np.lexsort((word, key))
    key, word = key[order], word[order]
    new = np.ones(len(key), bool)
    new[1:] = (key[1:] != key[:-1]) | (word[1:] != word[:-1])
    at = np.flatnonzero(new)
    times = np.diff(np.append(at, len(key)))
    key, word = key[at], word[at]
    keys, which = np.unique(key, return_inverse=True)
    totals = np.bincount(which, times, len(keys))
    best = np.lexsort((word, -times, which))
    rank = np.arange(len(best)) - np.searchsorted(which[best], np.arange(len(keys)))[which[best]]
    keep = best[(rank < top) & (times[best] >= least)]
    kept, counts = np.unique(which[keep], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return keys[kept], offsets, word[keep].astype(np.int32), (times[keep] / totals[which[keep]]).astype(np.float32)
