"""Verification by rejection: a guess that was drawn from q is kept with probability min(1, p / q).

p is the target's final distribution of the row, q what the guess was drawn from. What comes instead of a guess that
is not kept is drawn from norm(max(p - q, 0)); then the token that comes has the law p, whatever q is. Of guesses side
by side one after the other is tried, and each that is not kept turns p into norm(max(p - q, 0)) for the next.

The law is exact if

* the row of ``Draft.q`` of a node is what it was drawn from given its elder siblings (those before it in the draft):
  the same row for siblings drawn independently, the row without the elders' tokens, normalised again, for siblings
  drawn without putting back;
* whether a node is verified was decided without a look at its token and at what came after it: its ancestors, its
  elder siblings and all their rows may be looked at. To drop a guess because it seems unlikely is to bend the law.

Rows behind which nothing was drawn (no guess, temperature 0, a draft without q) are chosen as ``Coupled`` does, with
the noise of their position. For a guess that is no draw, q is all on its token: it is to be kept with probability
p(token) and else another token to come with the law of p without it, and that is what happens there; moreover the
token is the one that would have come without a draft, also where the guess came from that noise.

Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", 2023, arXiv 2211.17192; Chen,
Borgeaud, Irving, Lespiau, Sifre, Jumper: "Accelerating Large Language Model Decoding with Speculative Sampling", 2023,
arXiv 2302.01318; siblings: Miao et al., "SpecInfer", 2024, arXiv 2305.09781.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diastole.kernels.draw import WISH, candidates, draw_key, mix
from diastole.sample import Chosen, Sampler
from diastole.spec.verify import Coupled, Guess, Verdict
from diastole.types import Array, Draft

_APART = 0x7C3A9F51E60B2D85  # keeps these numbers apart from the noise of the same position, which drafters may use
_ALL = 2**64 - 1


class Rejection(Coupled):
    """Slot ``verify``."""

    @staticmethod
    def _at_once(guesses: Sequence[Guess], logits: Array) -> Verdict | None:
        return None

    @staticmethod
    def _choose(
        guesses: Sequence[Guess], verdict: Verdict, at: Sequence[int], walking: Sequence[int], logits: Array
    ) -> dict[int, Chosen]:
        found: dict[int, Chosen] = {}
        others: list[int] = []
        for i in walking:
            guess = guesses[i]
            nodes = drawn(guess, at[i])
            if not nodes:
                others.append(i)
                continue
            row = guess.rows[1 + at[i]]
            try:
                p = law(guess.sampler, logits[row])
                rows = [_row(guess.draft, node, len(p)) for node in nodes]
                tokens = [guess.draft.tokens[node] for node in nodes]
                token = pick(p, tokens, rows, _key(guess.sampler, guess.position + len(verdict.chosen[i])))
                found[i] = guess.sampler.take(token, logits, row)
            except Exception as e:  # whatever it is, the others are not to blame
                verdict.errors[i] = e
        return found | Coupled._choose(guesses, verdict, at, others, logits) if others else found


def drawn(guess: Guess, node: int) -> Sequence[int]:
    """The children of a node (-1: the last known token) that were drawn by chance, elder ones first."""
    draft = guess.draft
    if draft.q is None or guess.sampler.params.temperature == 0:
        return ()
    if draft.parents is None:
        return range(node + 1, min(node + 2, len(draft.tokens)))
    return [i for i, parent in enumerate(draft.parents) if parent == node]


def law(sampler: Sampler, logits: Array) -> Array:
    """The distribution from which a sampler draws, given the model's logits (V,) float32: (V,) float64."""
    t, top_k, top_p, min_p, _ = np.frombuffer(sampler.wish, WISH)[0].item()  # in the precision of the sampler itself
    row = sampler.adjust(logits)
    p = np.zeros(len(row))
    with np.errstate(all="ignore"):
        scores = row / np.float32(t)
        highest = scores.max()
    if not np.isfinite(highest):  # as good as temperature 0
        p[row.argmax()] = 1
        return p
    if top_k > 0 or top_p < 1 or min_p > 0:
        ids, scores = _left(row, scores, t, top_k, top_p, min_p)
        p[ids] = np.exp(scores.astype(np.float64) - highest)
    else:  # all tokens, which need not be put in order
        np.exp(scores.astype(np.float64) - highest, out=p)
    p /= p.sum()
    return p


def _left(row: Array, scores: Array, t: float, top_k: int, top_p: float, min_p: float) -> tuple[Array, Array]:
    """``candidates`` of a row, whose scores are row / t, without putting a whole vocabulary in order."""
    few = np.arange(len(row))
    if 0 < top_k < len(row):
        few = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    elif top_k <= 0 and top_p < 1:
        weights = np.exp((scores - scores.max()).astype(np.float64))
        total = weights.sum()
        few = np.flatnonzero(weights >= (1 - top_p) * total / len(row))  # all others together are what may be left out
        top_p *= total / weights[few].sum()
    elif top_k <= 0:
        few = np.flatnonzero(scores >= scores.max() + np.log(np.float32(min_p)))
    ids, left = candidates(row[few], t, top_k, top_p, min_p)
    return few[ids], left


def pick(p: Array, tokens: Sequence[int], rows: Sequence[Array], key: int) -> int:
    """The token that comes: of the guesses the first that is kept, or another.

    Args:
        p: (V,) float64, the target's distribution; left as it is.
        tokens: (n,) guesses side by side.
        rows: n of (V,), what each was drawn from.
        key: of all the numbers that are drawn here.
    """
    for k, (token, q) in enumerate(zip(tokens, rows, strict=True)):
        if _uniform(key + 1 + k) * float(q[token]) < p[token]:
            return token
        rest = np.maximum(p - q, 0)
        total = rest.sum()
        if total > 0:  # else p and q are the same but for rounding
            p = rest / total
    mass = np.cumsum(p)
    return int(np.searchsorted(mass, _uniform(key) * mass[-1], side="right"))


def _row(draft: Draft, node: int, vocab: int) -> Array:
    """What a node was drawn from, (V,).

    Raises:
        ValueError: that is no distribution over the vocabulary, or its token could not have come from it.
    """
    assert draft.q is not None
    q: Array = draft.q[node]
    if q.shape != (vocab,) or not abs(float(q.sum(dtype=np.float64)) - 1) < 1e-3:
        raise ValueError(f"q of a draft's node {node} must be {vocab} probabilities whose sum is 1")
    if not q[draft.tokens[node]] > 0:
        raise ValueError(f"a draft's node {node} guesses token {draft.tokens[node]}, which its q does not allow")
    return q


def _key(sampler: Sampler, position: int) -> int:
    """For the numbers of one position: of (seed, choice, position) alone."""
    stream: int = np.frombuffer(sampler.wish, WISH)[0].item()[-1]
    return mix(draw_key(stream, position) ^ _APART)


def _uniform(key: int) -> float:
    """At least 0, less than 1."""
    return float(mix(key & _ALL) >> 11) * 2.0**-53
