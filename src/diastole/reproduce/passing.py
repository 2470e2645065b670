"""A cost model that stands before another one, for who looks over an engine's shoulder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diastole.slots import CostModel
from diastole.types import Array, Grant


@dataclass(eq=False, slots=True)
class Passing:
    """Says what ``cost`` says, and passes on what steps took."""

    cost: CostModel

    @property
    def coefficients(self) -> Sequence[float]:
        return self.cost.coefficients

    @property
    def worst(self) -> float:
        return self.cost.worst

    def predict(self, grants: Sequence[Grant]) -> float:
        return self.cost.predict(grants)

    def promise(self, grants: Sequence[Grant]) -> float:
        return self.cost.promise(grants)

    def rising(self, grants: Sequence[Grant], most: int) -> Array:
        return self.cost.rising(grants, most)

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        self.cost.learn(grants, seconds)
