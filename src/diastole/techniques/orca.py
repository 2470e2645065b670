"""Orca: every step takes all streams that decode and, beside them, whole prompts. A baseline of schedulers.

Requests join and leave at every step (Yu et al., "Orca", OSDI 2022, section 3), but a prompt is read in one: a step
takes as long as the longest prompt in it, and all who decode wait that long. With ``tokens`` whole prompts join only
while the step has room for them, which Sarathi-Serve calls hybrid batching without chunks (Agrawal et al., OSDI 2024,
section 5.4). Changes no text.
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

    tokens: int = 0  # of prompts that may join in one step, and one at least; 0: all who wait


class Orca:
    """Slot ``compose``."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        emitting, absorbing = parted(asks)
        joining = together(absorbing, self.tokens) if self.tokens else whole(absorbing)
        return [*whole(emitting), *joining]


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.tokens < 0:
        raise UserError(f"orca: tokens must be at least 0, not {p.tokens}", param="use")
    return {"compose": Orca(p.tokens)}
