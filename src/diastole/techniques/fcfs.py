"""First come, first served: whoever asks runs whole, prompts before everything else. The baseline of schedulers.

No cut by seconds or deadlines: a long prompt holds up every other stream. It is what serving without chunks does, kept
to be measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diastole.slots import CostModel, Facts
from diastole.types import Ask, Grant

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Params:
    """No knobs."""


class FirstCome:
    """Slot ``compose``."""

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        return [Grant(a.stream, a.hi) for a in sorted(asks, key=lambda a: (a.emits, a.stream.serial))]


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"compose": FirstCome()}
