"""One load for several targets that take turns: unloaded, and at one rate after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

from diastole.bench.load.arrivals import Closed, Plan
from diastole.bench.load.drive import Target
from diastole.bench.load.judge import Verdict, judge, tpot, ttft
from diastole.bench.load.work import Load
from diastole.types import SLO, UserError

FIRST_TIMES = 5.0  # the unloaded TTFT of the load's median prompt is what a promise of the first token is made of
GAP_TIMES = 5.0  # and the unloaded TPOT that of the others
PROBES = 3
LEAST_ANSWER = 16  # tokens of a probe: from fewer no step could be told

Tell = Callable[[str, int], None]  # what is measured, and how many requests of it have ended


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The load's median request alone, in seconds: the median of a few."""

    ttft: float
    tpot: float
    whole: float

    def promise(self, first: float | None, gap: float | None) -> SLO:
        """The times that are given, in seconds; what is not is a multiple of the unloaded time."""
        return SLO(first or FIRST_TIMES * self.ttft, gap or GAP_TIMES * self.tpot)


def unloaded(target: Target, load: Load) -> Unloaded:
    """Raises:
    UserError: the target does not answer even that, and why.
    """
    run = target.run(load.typical(1 + PROBES, LEAST_ANSWER), Closed(1))
    asked = run.timelines[1:]  # the first finds nothing where it will be
    failed = next((t for t in run.timelines if t.error is not None or len(t.times) < 2), None)
    if failed is not None:
        why = failed.error or f"it gave {len(failed.times)} pieces of output and ended with {failed.finish}"
        raise UserError(f"a single request is not answered as it should be: {why}", param="url")
    return Unloaded(median(map(ttft, asked)), median(map(tpot, asked)), median(t.times[-1] - t.arrival for t in asked))


@dataclass(eq=False, slots=True)
class Match:
    """Targets under the same requests with the same arrivals.

    Args:
        plan: arrivals at a rate, or of so many clients.
        slo: what is judged by.
        promised: is told with each request; None: nothing is.
        tell: hears how far it is.
    """

    targets: Mapping[str, Target]
    load: Load
    plan: Callable[[float], Plan]
    slo: SLO
    promised: SLO | None = None
    tell: Tell = lambda what, done: None
    _turn: int = 0

    def at(self, level: float) -> dict[str, Verdict]:
        """All targets at one rate or number of clients; who begins changes from one to the next."""
        wishes = self.load.wishes(self._turn)
        names = [*self.targets]
        first = self._turn % len(names)
        self._turn += 1
        found = {}
        for name in names[first:] + names[:first]:
            tell = partial(self.tell, f"{name} at {level:.3g}")
            tell(0)
            found[name] = judge(self.targets[name].run(wishes, self.plan(level), self.promised, tell), self.slo)
        return {name: found[name] for name in names}
