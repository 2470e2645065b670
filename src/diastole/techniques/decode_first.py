"""Decodes first: a batch of requests runs to its end before the next one's prompts are read. A baseline of schedulers.

While anybody decodes nobody's prompt is read; then the prompts of all who wait come, whole, as many as the budget of
tokens holds, and become the next batch. Gaps between tokens are the smallest there are, and first tokens wait for
whole answers. Batching by requests, as FasterTransformer did it and as Sarathi-Serve's comparison has it (Agrawal et
al., OSDI 2024, section 2). Changes no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diastole.loops.slices import parted, together, whole
from diastole.slots import CostModel, Facts
from diastole.types import Ask, Grant, UserError

NEEDS = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    tokens: int = 8192  # of the prompts of one batch; one that is longer runs alone


class DecodeFirst:
    """Slot ``compose``."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        emitting, absorbing = parted(asks)
        return whole(emitting) or together(absorbing, self.tokens)


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.tokens < 1:
        raise UserError(f"decode-first: tokens must be at least 1, not {p.tokens}", param="use")
    return {"compose": DecodeFirst(p.tokens)}
