"""DistServe's replanning, simulated: four engines as one of this machine, and a load that turns from long prompts with
short answers to short prompts with long ones."""

from __future__ import annotations

from diastole.cluster.replanning import Engines, Replanning, goodputs
from diastole.reproduce.must import more_than
from diastole.reproduce.study import Study
from diastole.sim.load import LogNormal
from diastole.types import SLO

ENGINES = 4
LOADS = {"long prompts, short answers": (1500.0, 20.0), "short prompts, long answers": (60.0, 300.0)}
LONGEST = 4096  # tokens of a request
SPREAD = 0.5  # of the logarithm of lengths
REQUESTS = 200
FIRST, GAP = 6.0, 4.0  # times unloaded


def replans(study: Study, engine: Engines) -> None:
    """Judge how many requests per second are served in time after the load has turned, dealt out anew and as before.

    Args:
        engine: what steps took here.
    """
    latency = engine.latency
    slo = SLO(FIRST * latency.unloaded_prefill(1500), GAP * latency.unloaded_step(1500))
    replanning, prefills = Replanning(1.0, "simulated", slo, goodputs), ENGINES // 2
    rows: list[tuple[float | str, ...]] = []
    ratio = float("nan")
    for name, (prompt, output) in LOADS.items():
        lengths = LogNormal(prompt, output, SPREAD, LONGEST).draw(REQUESTS, study.seed)
        for length in lengths:
            replanning.ended("simulated", *length, None)
        before, prefills = prefills, replanning.plan(engine, ENGINES, prefills)
        found = {n: ENGINES * each for n, each in goodputs(engine, ENGINES, lengths, slo).items()}
        rows.append((name, *found.values(), before, prefills))
        ratio = found[prefills] / found[before] if found[before] else float("inf")
    study.check(
        f"simulated, {ENGINES} engines: requests per second in time after the load has turned, dealt out anew beside "
        "as before",
        ratio,
        more_than(1),
        unit="x",
        claim="placements are searched again when the load changes",
    )
    study.table(
        f"simulated: {ENGINES} engines like one of this machine; promises {slo.first:.2f} s and {1e3 * slo.gap:.1f} ms",
        ("load", *(f"requests/s, {n} read" for n in range(1, ENGINES)), "read before", "read then"),
        rows,
    )
