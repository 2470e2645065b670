"""Replanning: how many engines read prompts and how many decode is decided anew when another load comes (DistServe,
arXiv 2401.09670, section 4.3).

What requests were like is noted as they end. When the mean of their lengths is another than when it was last decided,
all ways to deal the engines out are simulated with these requests and with what steps take here, in a process of its
own. Moving a state from one engine to another is reckoned as nothing. The published profiler also looks at how often
requests come, which tells how many engines there should be; here there are as many as there are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diastole.engine.service import COSTS
from diastole.sim.cluster import Disaggregated, Group
from diastole.sim.goodput import Search
from diastole.sim.latency import Decode, Latency, Line, Prefill, saturation
from diastole.sim.life import Limits, Link
from diastole.sim.load import Length
from diastole.state.pages import PAGE
from diastole.types import SLO

log = logging.getLogger("diastole.cluster")

LATEST = 200  # requests that tell what a load is like
FEWEST = 20  # of them; before that nothing is decided
RUN = 300  # requests of a simulated run, as DistServe's simulator takes: those that are known, over and over
SHIFT = 1.5  # times as much or as little is another load
GAIN = 1.1  # times the goodput that is kept: less is not worth the change
FINE = 32  # parts of the highest rate to which goodputs are looked for
LOWEST = 1e-3  # requests per second and engine; less is none
FREE = Link(1.0, 0.0)


class Past(NamedTuple):
    """A request that has ended."""

    length: Length
    slo: SLO


class Load(NamedTuple):
    """What requests are like."""

    prompt: float  # tokens, mean
    output: float

    def differs(self, other: Load) -> bool:
        return any(not 1 / SHIFT < a / b < SHIFT for a, b in zip(self, other, strict=True))

    def __str__(self) -> str:
        return f"{self.prompt:.0f} tokens in and {self.output:.0f} out"


class Engines(NamedTuple):
    """What one engine is like.

    Attributes:
        costs: seconds of a step: base, per unit, per thousand units of context, per thousand of work
            (``engine.cost``).
        tokens: that it has room for.
    """

    costs: Sequence[float]
    tokens: int

    @property
    def latency(self) -> Latency:
        """Of its steps, in the planner's form."""
        base, unit, context, work = self.costs
        line = Line(base, (context + work) / 1e3, unit)
        prefill = Prefill(base, unit + context / 1e3, work / 2e3)
        return Latency(prefill, Decode(line, line, 1), hand_on=0.0, overhead=0.0, overhead_token=0.0)


def goodputs(engines: Engines, count: int, lengths: Sequence[Length], slo: SLO) -> dict[int, float]:
    """Requests per second and engine within both promises, by how many of ``count`` engines read prompts; simulated."""
    highest = 1 / engines.latency.unloaded_prefill(max(sum(n.prompt for n in lengths) // len(lengths), 1))
    while True:
        search = Search(lengths, slo, ceiling=highest, tolerance=highest / FINE)
        found = {n: search.goodput(dealt_out(engines, n, count - n), count) for n in range(1, count)}
        most = max(found.values())
        if most > highest / 4 or highest < LOWEST:
            return found
        highest = max(2 * most, highest / FINE)  # too coarse to tell them apart


def aside(engines: Engines, count: int, lengths: Sequence[Length], slo: SLO) -> dict[int, float]:
    """``goodputs`` in a process that ends with it, behind all others."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (10,)) as pool:
        return pool.submit(goodputs, engines, count, lengths, slo).result()


def dealt_out(engines: Engines, prefills: int, decodes: int) -> Disaggregated:
    """So many of each, to be simulated."""
    latency = engines.latency
    limits = Limits(saturation=saturation(latency.prefill))
    group = Group(prefills, latency, engines.tokens, limits)
    return Disaggregated(group, Group(decodes, latency, engines.tokens, limits), FREE)


@dataclass(eq=False)
class Replanning:
    """Looks at what comes, and says who should do what.

    Args:
        seconds: between two looks.
        service: whose requests are looked at.
        slo: of requests that bring no promises of their own.
        simulate: as ``goodputs``.
    """

    seconds: float
    service: str
    slo: SLO
    simulate: Callable[[Engines, int, Sequence[Length], SLO], dict[int, float]] = aside
    _past: deque[Past] = field(default_factory=lambda: deque(maxlen=LATEST))
    _planned: Load | None = None  # for which it was last decided

    def ended(self, service: str, prompt: int, output: int, slo: SLO | None) -> None:
        """A request has its whole answer."""
        if service == self.service and prompt and output:
            self._past.append(Past(Length(prompt, output), slo or self.slo))

    def engines(self, snapshots: Sequence[Mapping[str, Any]]) -> Engines | None:
        """What an engine is like, by what all say of themselves: their meters' snapshots, by service; the middle of
        what they think steps cost, and the room of who has least. None: they do not know yet."""
        gauges = [s[self.service]["gauges"] for s in snapshots if self.service in s]
        if not gauges or any(name not in g for g in gauges for name in COSTS):
            return None
        costs = [statistics.median(g[name] for g in gauges) for name in COSTS]
        return Engines(costs, int(min(g["kv_pages"] for g in gauges)) * PAGE)

    @property
    def load(self) -> Load | None:
        """None: too few requests have ended to tell."""
        if len(self._past) < FEWEST:
            return None
        lengths = [p.length for p in self._past]
        return Load(statistics.fmean(n.prompt for n in lengths), statistics.fmean(n.output for n in lengths))

    def due(self) -> bool:
        """Whether there is another load than the one that it was last decided for."""
        load = self.load
        return load is not None and (self._planned is None or load.differs(self._planned))

    def plan(self, engines: Engines, count: int, prefills: int) -> int:
        """How many of ``count`` engines should read prompts, where ``prefills`` do now: as many, unless others serve
        more requests within the promises of most. It takes a while: call it beside what must not wait.
        """
        load, past = self.load, list(self._past)
        if load is None:
            return prefills
        self._planned = load
        slo = SLO(statistics.median(p.slo.first for p in past), statistics.median(p.slo.gap for p in past))
        lengths = [past[i % len(past)].length for i in range(RUN)]
        found = self.simulate(engines, count, lengths, slo)
        best = max(found, key=lambda n: (found[n], -abs(n - prefills)))
        chosen = best if found[best] > GAIN * found[prefills] else prefills
        log.info(
            "%s: %d of %d engines read prompts (simulated: %.3g requests per second in time, %.3g with %d)",
            *(load, chosen, count, count * found[chosen], count * found[prefills], prefills),
        )
        return chosen
