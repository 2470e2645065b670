"""The twin beside the real thing: what a fake clock with this machine's fitted costs predicts, and what came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from diastole.bench.load.arrivals import Poisson
from diastole.bench.load.drive import Local
from diastole.bench.load.match import unloaded
from diastole.bench.load.work import Sizes, lognormal
from diastole.bench.longtext import Corpus
from diastole.cluster.replanning import Engines
from diastole.llm import LLM
from diastole.reproduce.distserve_replanning import replans
from diastole.reproduce.must import at_most
from diastole.reproduce.passing import Passing
from diastole.reproduce.schedulers import STREAMS, Stage
from diastole.reproduce.study import Study
from diastole.sim import twin
from diastole.sim.timeline import Arrival, attainment
from diastole.slots import CostModel
from diastole.state.pages import PAGE
from diastole.types import SLO, Array, Grant

LENGTHS = "160:600/60:150"
SCHEDULER = "sarathi-serve:chunk=128"
RATES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5)  # of what is served if all come at once
FIRST, GAP = 6.0, 3.0  # times unloaded


@dataclass(frozen=True, slots=True)
class Real:
    """What steps really take: as fitted, and what the engine does beside the model."""

    cost: CostModel
    beside: float  # seconds
    worst: float = 1.0

    @property
    def coefficients(self) -> Sequence[float]:
        base, *others = self.cost.coefficients
        return [base + self.beside, *others]

    def predict(self, grants: Sequence[Grant]) -> float:
        return self.cost.predict(grants) + self.beside

    def promise(self, grants: Sequence[Grant]) -> float:
        return self.predict(grants)

    def rising(self, grants: Sequence[Grant], most: int) -> Array:
        return self.cost.rising(grants, most) + self.beside

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """It knows."""


@dataclass(eq=False, slots=True)
class Frozen(Passing):
    """What a policy believed at the end of the real runs: it learns no more, so that all simulations are alike."""

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        """Not any more."""


def beside(study: Study) -> None:
    """Attainment and goodput of one engine, measured at some rates and predicted of the same requests."""
    count = 12 if study.quick else 60
    with LLM("smollm2-135m", max_streams=STREAMS, prefix_cache=False, context=4096) as llm:
        stage = Stage(llm)
        load = lognormal(Sizes.parse("lengths", LENGTHS), Corpus.of(llm.voice.tokenizer), count, 4000, seed=3)
        wishes = load.wishes()
        stage.service.compose = stage.composer(SCHEDULER)
        alone = unloaded(Local(llm.engine, llm.name), load)
        slo = SLO(FIRST * alone.ttft, GAP * alone.tpot)
        busy = stage.serve(SCHEDULER, wishes, [0.0] * count, slo)
        full = count / busy.verdict.seconds
        rates = [r * full for r in (RATES[2:3] if study.quick else RATES)]
        loads = {rate: Poisson().times(count, rate, study.seed) for rate in rates}
        measured = {}
        with study.progress("one engine", len(rates)) as told:
            for rate, times in loads.items():
                measured[rate] = stage.serve(SCHEDULER, wishes, times, slo).verdict
                told()
        outside = _outside(stage, wishes[:8])
        pages = stage.service.pages()[1]
        replans(study, Engines(tuple(stage.heard.cost.coefficients), pages * PAGE))
        predicted = {}
        for rate, times in loads.items():
            asked = [Arrival(at, len(w.prompt), w.output) for at, w in zip(times, wishes, strict=True)]
            served = twin.service(stage.composer(SCHEDULER), Frozen(stage.heard.cost), STREAMS, pages, 4096)
            lines = twin.simulate(asked, served, truth=Real(stage.heard.cost, outside))
            last = max(t.times[-1] for t in lines)
            kept = attainment(lines, slo)
            predicted[rate] = (kept, kept * count / last, median(t.ttft for t in lines), median(t.tpot for t in lines))
    errors = [100 * abs(predicted[r][0] - measured[r].attainment) for r in rates]
    study.check(
        f"attainment that the twin predicts of this machine, {len(rates)} rates: points beside what came, the worst",
        max(errors),
        at_most(5),
        unit="%",
        claim="within 2 %",
        why=f"each of {count} requests is {100 / count:.1f} points",
    )
    busy_enough = [r for r in rates if measured[r].attainment > 0.5]
    goodputs = [abs(predicted[r][1] / measured[r].goodput - 1) for r in busy_enough]
    study.check(
        "goodput that it predicts, where more than half keep their promises: beside what came, the worst",
        100 * max(goodputs, default=float("nan")),
        at_most(15),
        unit="%",
        claim="the issue's",
    )
    study.table(
        f"one engine with {SCHEDULER}, measured and simulated; promises {slo.first:.2f} s and {1e3 * slo.gap:.1f} ms",
        ("requests/s", *(f for n in ("in time", "good/s", "TTFT p50, s", "TPOT p50, ms") for f in (n, "simulated"))),
        [
            (
                rate,
                v.attainment,
                predicted[rate][0],
                v.goodput,
                predicted[rate][1],
                v.ttft.p50 if v.ttft else float("nan"),
                predicted[rate][2],
                1e3 * v.tpot.p50 if v.tpot else float("nan"),
                1e3 * predicted[rate][3],
            )
            for rate, v in measured.items()
        ],
    )
    study.note(f"an engine's step has {1e3 * outside:.2f} ms beside what its cost model sees")


def _outside(stage: Stage, wishes: Sequence[object]) -> float:
    """Seconds of a step that no cost model sees: after the model's own."""
    engine = stage.llm.engine
    step, spent = engine.step, []
    seen = [0.0]
    learn = stage.heard.cost.learn

    def learned(grants: Sequence[Grant], seconds: float) -> None:
        seen[0] = seconds
        learn(grants, seconds)

    def timed() -> object:
        began = time.perf_counter()
        seen[0] = 0.0
        events = step()
        if seen[0]:
            spent.append(time.perf_counter() - began - seen[0])
        return events

    engine.step = timed  # type: ignore[method-assign, assignment]
    stage.heard.cost.learn = learned  # type: ignore[method-assign]
    try:
        stage.serve(SCHEDULER, wishes, [0.0] * len(wishes), SLO(1e9, 1e9))  # type: ignore[arg-type]
    finally:
        engine.step, stage.heard.cost.learn = step, learn  # type: ignore[method-assign]
    return float(np.median(spent)) if spent else 0.0
