"""Prompts first: whoever waits with a prompt is served whole before anybody decodes again. A baseline of schedulers.

Whole prompts, in order of arrival, as many as the budget of tokens holds and one at least; only when nobody has one
left do streams decode. First tokens come soon, and every text pauses for every prompt. The rule of vLLM's first
scheduler, as Sarathi-Serve's comparison has it (Agrawal et al., OSDI 2024, section 5). Changes no text.
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

    tokens: int = 2048  # of prompts in one step; one that is longer runs alone


class PrefillFirst:
    """Slot ``compose``."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        emitting, absorbing = parted(asks)
        return together(absorbing, self.tokens) or whole(emitting)


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.tokens < 1:
        raise UserError(f"prefill-first: tokens must be at least 1, not {p.tokens}", param="use")
    return {"compose": PrefillFirst(p.tokens)}
