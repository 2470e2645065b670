"""Prompt lookup: what followed the text's last tokens when they came before is guessed to follow again. The plain
baseline of drafters.

No model and no training: of all earlier places where the text's last tokens stand, the longest match is taken, and of
equal ones the latest. Good where a text repeats its prompt (summaries, edits, code), nothing elsewhere. Idea: Saxena,
"Prompt Lookup Decoding", 2023; as a draft for exact verification it changes how fast a text comes, never the text.
Where a request says what its answer may repeat (``SamplingParams.prediction``), that is looked at as if it stood before
the prompt, and from its beginning while the answer follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.kernels.grams import longest_match
from diastole.slots import Facts
from diastole.spec.guesser import Guesser
from diastole.types import Array, Draft, Stream, UserError

NEEDS = frozenset({"paged_kv"})
MOST = 64  # guesses that one step may verify
NAME = "ngram"
GAP = -1  # between a prediction and the text, no token
NOTHING = Draft(())


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    k: int = 8  # tokens guessed at once, at most
    least: int = 2  # tokens that must match
    most: int = 16  # tokens that are compared


class Lookup(Guesser):
    """Slot ``draft``."""

    def __init__(self, p: Params) -> None:
        if not 1 <= p.k <= MOST:
            raise UserError(f"ngram: k must be between 1 and {MOST}, not {p.k}", param="use")
        if not 1 <= p.least <= p.most:
            raise UserError(f"ngram: least must be between 1 and most = {p.most}, not {p.least}", param="use")
        self.p, self.most = p, p.k

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        return [self._guess(s, n) for s, n in zip(streams, lengths, strict=True)]

    def _guess(self, stream: Stream, n: int) -> Draft:
        ids: Array = stream.own.ids[: stream.known]
        told = stream.req.params.prediction
        if not told:
            return self._looked_up(ids, n)
        said = stream.known - len(stream.req.inputs)
        if said < self.p.most and told[:said] == tuple(ids[len(ids) - said :].tolist()):  # so far it is as foretold
            return _draft(list(told[said : said + n]), self.p.most)
        if NAME not in stream.scratch:
            stream.scratch[NAME] = np.array([*told, GAP], np.int32)
        return self._looked_up(np.concatenate([stream.scratch[NAME], ids]), n)

    def _looked_up(self, ids: Array, n: int) -> Draft:
        at, length = longest_match(ids, self.p.most)
        if length < self.p.least or n < 1:
            return NOTHING
        tokens: list[int] = ids[at : at + n].tolist()
        if GAP in tokens:
            return _draft(tokens[: tokens.index(GAP)], length)
        while len(tokens) < n:  # it runs into the text's end: the text is thought to go round
            tokens += tokens[: n - len(tokens)]
        return _draft(tokens, length)


def _draft(tokens: list[int], length: int) -> Draft:
    """Guesses behind a match of so many tokens. The longer, the surer: controllers learn how sure."""
    return Draft(tokens, odds=[length / (length + 2)] * len(tokens))


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": Lookup(p)}
