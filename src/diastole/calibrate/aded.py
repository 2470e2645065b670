"""What follows pairs of tokens in a model's own text: counted.

    keys      (n,) uint64, the pair a << 32 | b, ascending
    offsets   (n + 1,) int64: the successors of pair i are at offsets[i]..offsets[i + 1] of
    words     (m,) int32, the likeliest first, and
    weights   (m,) float32, the share of the pair's occurrences that each followed

Kept are the ``TOP`` likeliest successors of a pair, of those that came at least twice.
"""

from __future__ import annotations

import numpy as np

from diastole.calibrate.job import Job
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
    pairs = ids[:-2].astype(np.uint64) << np.uint64(32) | ids[1:-1].astype(np.uint64)
    order = np.lexsort((ids[2:], pairs))
    key, word = pairs[order], ids[2:][order]
    new = np.ones(len(key), bool)
    new[1:] = (key[1:] != key[:-1]) | (word[1:] != word[:-1])
    at = np.flatnonzero(new)
    times = np.diff(np.append(at, len(key)))
    key, word = key[at], word[at]
    pair, which = np.unique(key, return_inverse=True)
    totals = np.bincount(which, times, len(pair))
    best = np.lexsort((word, -times, which))
    first = np.searchsorted(which[best], np.arange(len(pair)))
    rank = np.arange(len(best)) - first[which[best]]
    keep = best[(rank < top) & (times[best] >= least)]
    kept, counts = np.unique(which[keep], return_counts=True)
    return {
        "keys": pair[kept],
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "words": word[keep].astype(np.int32),
        "weights": (times[keep] / totals[which[keep]]).astype(np.float32),
    }
