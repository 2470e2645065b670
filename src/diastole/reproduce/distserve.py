"""DistServe: prefill and decode apart on this machine's two cores, and its search for placements, simulated.

Real: two engines of SmolLM2-135M on one core each, one that reads prompts and one that decodes, beside two replicas on
one core each and one engine on both, with prompts first and with Sarathi-Serve's slices; all are clusters behind the
same router, and all get the same requests at the same times. The balanced load has as many seconds of reading as of
decoding, as measured on one core just before; two others have not. Simulated: one engine of this machine by its twin,
beside what it did; OPT-13B on A100, with the fits that the authors published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from diastole.assets import resolve
from diastole.assets.models import tokenizer_of
from diastole.bench.load.arrivals import Poisson
from diastole.bench.load.judge import Verdict, judge, tpot, ttft
from diastole.bench.load.work import Wish
from diastole.bench.longtext import Corpus
from diastole.reproduce import distserve_twin
from diastole.reproduce.distserve_stall import stalls
from diastole.reproduce.distserve_system import MODEL, Served, Shape, System
from diastole.reproduce.must import at_least, at_most, equal_to, less_than, more_than
from diastole.reproduce.study import Study
from diastole.sim.evidence import PROMISED, Evidence, evidence
from diastole.types import SLO

PAPER = "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized LLM Serving (arXiv 2401.09670)"

APART = Shape(("prefill", "decode"))
SHAPES: Mapping[str, Shape] = {
    "apart": APART,
    "two replicas, prompts first": Shape(("both", "both"), ("prefill-first",)),
    "one engine, prompts first": Shape(("both",), ("prefill-first",)),
    "two replicas, slices": Shape(("both", "both"), ("sarathi-serve:chunk=128",)),
    "one engine, slices": Shape(("both",), ("sarathi-serve:chunk=128",)),
}
NETWORKS = (25.0, 1.0, 0.1)  # Gbit/s
PROMPT = 256  # tokens of the balanced load
CROWD = 8  # streams that decode together, where the load is balanced
LOADS = (0.3, 0.5, 0.7, 0.9)  # of what one core could read and the other decode
FIRST, GAP = 3.0, 1.5  # times unloaded


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Of engines on one core each, in seconds."""

    ttft: float
    tpot: float
    reading: float  # a prompt
    step: float  # of a crowd


def run(study: Study) -> None:
    corpus = Corpus.of(tokenizer_of(resolve(MODEL)))
    asyncio.run(_real(study, corpus))
    distserve_twin.beside(study)
    _simulated(study)


async def _real(study: Study, corpus: Corpus) -> None:
    rng = Random(study.seed)
    async with System(APART) as system:
        alone = await _unloaded(system, corpus, rng)
    output = max(round(alone.reading * CROWD / alone.step), 8)
    per_second = 1 / alone.reading  # requests that one core can read
    count = 16 if study.quick else 50
    slo = SLO(FIRST * alone.ttft, GAP * alone.tpot)
    study.note(
        f"one core reads {PROMPT} tokens in {alone.reading:.3f} s, and a step of {CROWD} streams takes "
        f"{1e3 * alone.step:.1f} ms: {output} tokens of output are as much work; promises: {slo.first:.2f} s and "
        f"{1e3 * slo.gap:.1f} ms per token"
    )
    balanced = _wishes(corpus, rng, count, PROMPT, output)
    names = list(SHAPES)[:2] if study.quick else list(SHAPES)
    loads = LOADS[1:2] if study.quick else LOADS
    found: dict[str, dict[float, Served]] = {}
    lopsided: dict[str, dict[str, Served]] = {}
    kinds = {"long prompts, short answers": (768, 16), "short prompts, long answers": (32, 160)}
    with study.progress("clusters", len(names) * (len(loads) + (0 if study.quick else len(kinds)))) as told:
        for name in names:
            async with System(SHAPES[name]) as system:
                await system.serve(balanced[:4], [0.0] * 4)  # touches everything once
                found[name] = {}
                for load in loads:
                    times = Poisson().times(count, load * per_second, study.seed)
                    found[name][load] = await system.serve(balanced, times)
                    told()
                for kind, (prompt, out) in ({} if study.quick else kinds).items():
                    wishes = _wishes(corpus, Random(study.seed + 1), 20, prompt, out)
                    work = max(prompt / PROMPT * alone.reading, out * alone.step / CROWD)
                    times = Poisson().times(20, 0.6 / work, study.seed)
                    lopsided.setdefault(kind, {})[name] = await system.serve(wishes, times)
                    told()
        network = await _networks(study, balanced, per_second)
    _judge(study, found, alone, slo, network)
    await stalls(study, corpus, {name: SHAPES[name] for name in SHAPES if "replicas" not in name}, "apart")
    for kind, by_name in lopsided.items():
        study.table(
            f"{kind}: 20 requests at 0.6 of what the busier core can do",
            ("cluster", "seconds for all", "TTFT p50, s", "TPOT p50, ms", "gap p99, ms"),
            [(n, v.seconds, *_told(v)) for n, v in ((n, judge(s.run, slo)) for n, s in by_name.items())],
        )


async def _unloaded(system: System, corpus: Corpus, rng: Random) -> Unloaded:
    """One request at a time, then a crowd that decodes."""
    firsts, gaps = [], []
    for _ in range(4):
        served = await system.serve(_wishes(corpus, rng, 1, PROMPT, 24), [0.0])
        firsts.append(ttft(served.run.timelines[0]))
        gaps.append(tpot(served.run.timelines[0]))
    crowd = await system.serve(_wishes(corpus, rng, CROWD, 64, 96), [0.0] * CROWD)
    steps = [tpot(t) for t in crowd.run.timelines]
    first = float(np.median(firsts[1:]))
    return Unloaded(first, float(np.median(gaps[1:])), first, float(np.median(steps)))


def _wishes(corpus: Corpus, rng: Random, count: int, prompt: int, output: int) -> list[Wish]:
    return [Wish(list(corpus.cut(prompt, rng))[:prompt], output) for _ in range(count)]


async def _networks(study: Study, balanced: Sequence[Wish], per_second: float) -> dict[float, Served]:
    """The same load over slower and slower links."""
    few = balanced[: 8 if study.quick else 30]
    found = {}
    for gbit in NETWORKS[:1] if study.quick else NETWORKS:
        async with System(Shape(APART.roles, APART.use, gbit)) as system:
            await system.serve(few[:2], [0.0] * 2)
            found[gbit] = await system.serve(few, Poisson().times(len(few), 0.3 * per_second, study.seed))
    return found


def _judge(
    study: Study,
    found: Mapping[str, Mapping[float, Served]],
    alone: Unloaded,
    slo: SLO,
    network: Mapping[float, Served],
) -> None:
    one = next(iter(found.values()))
    different = sum(s.said != one[load].said for by_load in found.values() for load, s in by_load.items())
    study.check("loads whose texts differ between clusters", different, equal_to(0), claim="lossless")
    verdicts = {name: {load: judge(s.run, slo) for load, s in of.items()} for name, of in found.items()}
    fast = network[NETWORKS[0]]
    firsts = [ttft(t) for t in fast.run.timelines]
    study.check(
        "a state's way at 25 Gbit/s, median, of the median TTFT",
        100 * float(np.median(fast.moved)) / float(np.median(firsts)),
        less_than(1),
        unit="%",
        claim="below 0.1 % of latency",
        why="the decode engine looks between its steps: once to see that there is a state to fetch and room for it, "
        "once to take it, and its one core copies the state while it decodes",
    )
    middle = sorted(one)[len(one) // 2]
    gap = {name: _p99(of[middle]) for name, of in verdicts.items()}
    rivals = [n for n in verdicts if "prompts first" in n]
    study.check(
        f"P99 of the gap between tokens at load {middle:g}, beside the better of prompts first",
        gap["apart"] / min(gap[n] for n in rivals),
        less_than(0.3),
        unit="x",
    )
    good = {name: max((l for l, v in of.items() if v.attainment >= 0.9), default=0.0) for name, of in verdicts.items()}
    if not study.quick:
        study.check(
            f"goodput of the balanced load, 90 % keeping both promises, beside the better of prompts first; of "
            f"{', '.join(map(str, LOADS))}",
            good["apart"] / max(max(good[n] for n in rivals), LOADS[0] / 2),
            more_than(1),
            unit="x",
            why="an engine on both cores takes half as long for a step as one core that decodes alone, whose crowd "
            "soon breaks a limit of 1.5 times the unloaded step; the mean over a text forgives the other its pauses",
            claim="up to 7.4x on GPUs",
            headline=True,
        )
    study.table(
        f"balanced load, promises {slo.first:.2f} s and {1e3 * slo.gap:.1f} ms",
        ("cluster", "load", "both kept", "TTFT p50, s", "TPOT p50, ms", "gap p99, ms", "longest, ms"),
        [
            (name, load, v.attainment, *_told(v), 1e3 * v.longest_gap)
            for name, of in verdicts.items()
            for load, v in sorted(of.items())
        ],
    )
    for name, of in verdicts.items():
        study.curve(
            "balanced load",
            sorted(of),
            [of[load].attainment for load in sorted(of)],
            label=name,
            xlabel="load, of what one core can read",
            ylabel="share of requests that keep both promises",
        )
    study.table(
        "states over emulated networks",
        ("Gbit/s", "way of a state, p50 ms", "p99 ms", "TTFT p50, s", "longest gap p50, ms"),
        [
            (
                gbit,
                1e3 * float(np.median(s.moved)),
                1e3 * float(np.percentile(s.moved, 99)),
                float(np.median([ttft(t) for t in s.run.timelines])),
                1e3 * float(np.median([max(np.diff(t.times), default=0.0) for t in s.run.timelines])),
            )
            for gbit, s in network.items()
        ],
    )


def _told(v: Verdict) -> tuple[float, float, float]:
    none = float("nan")
    return (
        v.ttft.p50 if v.ttft else none,
        1e3 * v.tpot.p50 if v.tpot else none,
        1e3 * v.itl.p99 if v.itl else none,
    )


def _p99(v: Verdict) -> float:
    return v.itl.p99 if v.itl else float("nan")


# ---- simulated


def _simulated(study: Study) -> None:
    parts = 14
    with study.progress("simulated clusters", parts) as told:
        found = evidence(
            count=60 if study.quick else 300,
            tolerance=0.25 if study.quick else 0.1,
            requests=3_000 if study.quick else 50_000,
            step=lambda what: told(),
        )
    for lengths in dict.fromkeys(s.lengths for s in found.pairs):
        goodput = {s.what: s.goodput for s in found.pairs if s.lengths == lengths}
        best = goodput.pop("TP2 + TP1")
        study.check(
            f"simulated, {lengths}: prefill TP2 + decode TP1 per GPU, beside the better of TP1 + TP1 and TP2 + TP2",
            best / max(*goodput.values(), 1e-9),
            more_than(1),
            unit="x",
            claim="1.56 requests/s per GPU with it",
        )
    worst = max(abs(q.simulated / q.formula - 1) for q in found.queues)
    study.check(
        "simulated queues beside the formulas of M/D/1, worst of 9",
        100 * worst,
        at_most(3 if not study.quick else 10),
        unit="%",
    )
    _beside_colocated(study, found)


def _beside_colocated(study: Study, found: Evidence) -> None:
    split = max(s.goodput for s in found.pairs)
    own = max((s for s in found.colocated if "vLLM" not in s.what), key=lambda s: s.goodput)
    theirs = max((s for s in found.colocated if "vLLM" in s.what), key=lambda s: s.goodput)
    study.check(
        f"simulated: goodput per GPU beside vLLM's best, {theirs.what}",
        split / max(theirs.goodput, 1e-9),
        at_least(1),
        unit="x",
        claim="2.0x to 4.5x",
    )
    study.check(
        f"simulated: goodput per GPU beside the best colocated with the same fits, {own.what}",
        split / max(own.goodput, 1e-9),
        at_least(1),
        unit="x",
        claim="2.0x to 4.5x",
        why="TPOT is a mean over a text and forgives stalls; with the same fits one instance on four GPUs that does "
        "both keeps both promises at a higher rate, and only its longest gaps tell the difference",
    )
    longest = min(s.stall for s in found.pairs if s.goodput > 0)
    study.check(
        "simulated: longest gap in 99 % of requests at 0.5 requests/s per GPU, beside that one's",
        longest / own.stall,
        less_than(0.5),
        unit="x",
    )
    study.table(
        f"simulated: OPT-13B on A100, {PROMISED.first:g} s and {PROMISED.gap:g} s per token, 90 % keeping both",
        ("lengths", "placement", "GPUs", "requests/s per GPU", "each promise by itself", "longest gap p99, s"),
        [(s.lengths, s.what, s.gpus, s.goodput, s.apart, s.stall) for s in (*found.pairs, *found.colocated)],
    )
    study.table(
        "simulated: what searches take on 8 GPUs of two nodes",
        ("node affinity", "network, GB/s", "placement", "requests/s per GPU"),
        [(c.search, c.network / 1e9, c.placement, c.goodput) for c in found.chosen],
    )
    study.note(f"two GPUs should be a pipeline from {found.crossing:.1f} requests/s on, by the published fit")
