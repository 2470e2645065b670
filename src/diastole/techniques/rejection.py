"""Rejection: guesses that were drawn from q are kept with probability min(1, p / q), the classical verifier of drafts.

Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", 2023, arXiv 2211.17192; Chen,
Borgeaud, Irving, Lespiau, Sifre, Jumper: "Accelerating Large Language Model Decoding with Speculative Sampling", 2023,
arXiv 2302.01318. Needs a drafter beside it.

The law of the text is exactly the model's, but at the same seed the text is not the one that comes without drafts, as
it is with the default verifier (shared noise); with the same drafts the same seed gives the same text. It is
preferable where more guesses are to be right: a guess is kept with probability 1 - TV, TV being the total variation
between the distributions of drafter and model, the most that any verifier can; shared noise promises
(1 - TV) / (1 + TV), and that only where the drafter uses it too.

At temperature 0, and for drafters that guess without chance (ngram, say), nothing changes: text and number of right
guesses are the default verifier's. What drops guesses of drafts that were drawn must not look at their tokens first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diastole.slots import Facts
from diastole.spec.rejection import Rejection

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Params:
    """No knobs."""


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"verify": Rejection()}
