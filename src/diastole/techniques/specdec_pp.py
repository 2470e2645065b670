"""SpecDec++: guessing stops when something guessed so far is too likely to be wrong.

Huang, Guo, Wang: "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths", COLM 2025,
arXiv 2405.19715. A small head on the drafter's last hidden state tells how likely each guess is right; the round ends
when the probability that one of them is wrong passes a threshold. Needs a drafter with hidden states (``longspec``,
whose ``tree_shape`` is a chain as long as ``max_draft``) and a head trained on it (``diastole train specdec-pp``).

The head reads the state at a guess's own position, after it was fed; the guess that comes out there is dropped when the
round ends. Its blocks share one matrix, as in the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diastole.heads.acceptance import AcceptanceHead
from diastole.slots import Facts
from diastole.types import Array, Stream, UserError
from diastole.weights.calibration import find

NEEDS: frozenset[str] = frozenset()
NAME = "specdec-pp"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    head: str = ""  # file of the head; empty: beside the model, or Diastole's own
    threshold: float = 0.5  # of the probability that a guess of the round is wrong
    min_draft: int = 1  # guesses before the head is asked
    max_draft: int = 20  # guesses of a round, at most


class SpecDecPP:
    """Slot ``halt``."""

    def __init__(self, p: Params, facts: Facts) -> None:
        if not 0 < p.threshold < 1:
            raise _wrong("threshold", f"must be above 0 and below 1, not {p.threshold}")
        if not 1 <= p.min_draft <= p.max_draft:
            raise _wrong("min_draft", f"must be between 1 and max_draft = {p.max_draft}, not {p.min_draft}")
        self.p = p
        found = find(NAME, facts, p.head, NAME)
        try:
            self.head = AcceptanceHead(found.tensors)
        except (KeyError, ValueError) as e:
            raise _wrong("head", f"is no acceptance head: {e}") from None
        self.width = self.head.width
        if facts.decoder is not None and self.width != facts.decoder.width:
            raise _wrong("head", f"reads {self.width} numbers, and hidden states have {facts.decoder.width}")

    def stop(self, streams: Sequence[Stream], drafted: Sequence[int], hidden: Array) -> Sequence[bool]:
        right = self.head(hidden).tolist()
        stops: list[bool] = []
        for stream, count, own in zip(streams, drafted, right, strict=True):
            so_far = own if count == 1 else own * float(stream.scratch.get(NAME, 1.0))
            stream.scratch[NAME] = so_far
            stops.append(count >= self.p.max_draft or (count >= self.p.min_draft and 1 - so_far > self.p.threshold))
        return stops


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"halt": SpecDecPP(p, facts)}
