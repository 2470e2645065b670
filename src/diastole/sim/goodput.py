"""Goodput: the highest rate per GPU at which enough requests keep their promises, by bisection (DistServe, section 4).

Rates are compared on the same lengths and the same gaps, scaled, so the outcome hardly ever turns back as they grow;
where it does, bisection finds one of the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diastole.sim.cluster import System
from diastole.sim.load import Length, poisson
from diastole.sim.timeline import Apart, Joint, Judge, Timeline, quantile
from diastole.types import SLO, UserError

USUAL = Joint()


@dataclass(frozen=True, slots=True)
class Search:
    """How a goodput is looked for.

    Args:
        lengths: of the requests of a run; DistServe's simulator takes 300 to 1,000.
        judge: of a run.
        ceiling: requests per second and GPU; more is not looked for.
        tolerance: of the same; between the highest rate that was good and the lowest that was not.
        seed: of the arrivals.
    """

    lengths: Sequence[Length]
    slo: SLO
    judge: Judge = USUAL
    ceiling: float = 16.0
    tolerance: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths:
            raise UserError("a search needs requests", param="requests")
        if not 0 < self.tolerance <= self.ceiling <= 1e6:
            message = f"the tolerance must be above 0 and at most {self.ceiling:g}, not {self.tolerance:g}"
            raise UserError(message, param="tolerance")

    def run(self, system: System, rate: float) -> list[Timeline]:
        """Simulated timelines at ``rate`` requests per second in all."""
        return system.run(poisson(self.lengths, rate, self.seed))

    def goodput(self, system: System, gpus: int) -> float:
        """Requests per second and GPU; 0: less than the tolerance, or memory is too small for the longest request."""
        low, high = 0.0, self.ceiling
        try:
            while high - low > self.tolerance:
                middle = (low + high) / 2
                if self.judge(self.run(system, middle * gpus), self.slo):
                    low = middle
                else:
                    high = middle
        except UserError as e:
            if e.code != "too_long":
                raise
            return 0.0
        return low

    def stall(self, system: System, rate: float) -> float:
        """Seconds: the longest gap between two tokens of a request, in 99 % of them. TPOT is a mean and hides it."""
        return quantile([t.worst_gap for t in self.run(system, rate)], 0.99)

    def apart(self) -> Search:
        """The same, judged as the published simulator does."""
        return replace(self, judge=Apart(self.judge.share))
