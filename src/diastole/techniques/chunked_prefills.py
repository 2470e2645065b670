"""Chunked prefills alone: slices of prompts, but in steps of their own between the streams'. A baseline of schedulers.

Where prompts wait and streams decode the two take turns, a step each: no pause is longer than a slice, and every slice
costs all streams a step. What Sarathi-Serve calls chunked prefills without hybrid batching (Agrawal et al., OSDI 2024,
section 5.4). Changes no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diastole.loops.slices import parted, whole
from diastole.slots import CostModel, Facts
from diastole.types import Ask, Grant, UserError

NEEDS = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    chunk: int = 256  # tokens of prompts in one step


class TakingTurns:
    """Slot ``compose``."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._read = False  # whether the last step was a prompt's

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        emitting, absorbing = parted(asks)
        self._read = bool(absorbing) and not (emitting and self._read)
        if not self._read:
            return whole(emitting)
        grants: list[Grant] = []
        left = self.chunk
        for ask in absorbing:
            n = min(ask.hi, left)
            if n < ask.lo and grants:
                break
            n = max(n, ask.lo)
            grants.append(Grant(ask.stream, n))
            left -= n
            if left <= 0:
                break
        return grants


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.chunk < 1:
        raise UserError(f"chunked-prefills: chunk must be at least 1, not {p.chunk}", param="use")
    return {"compose": TakingTurns(p.chunk)}
