"""Fixed: every stream verifies as many guesses as there are, up to k, whatever the load. The plain baseline of
controllers of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diastole.slots import CostModel, Facts
from diastole.spec.pace import Unpaced
from diastole.types import Ask, UserError

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    k: int = 4  # guesses per stream and step, at most; 0: none


class Fixed(Unpaced):
    """Slot ``pace``."""

    def __init__(self, k: int) -> None:
        self.k = k

    def lengths(self, asks: Sequence[Ask], cost: CostModel) -> Sequence[int]:
        return [min(a.hi, a.lo + self.k) if a.emits else a.hi for a in asks]


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.k < 0:
        raise UserError(f"fixed: k must be at least 0, not {p.k}", param="use")
    return {"pace": Fixed(p.k)}
