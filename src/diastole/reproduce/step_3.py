"""Step-3: its cost model to the digit, MFA beside other attentions at equal caches, attention and FFN apart.

A: the costs are computed from published configurations, and set beside the figures of the report. B: small models that
keep equally much of a token, trained on the same tokens (step_3_attentions.py). C: SmolLM2-135M with its layers cut in
two, each half in a process on one core, beside one process on both cores and on one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from diastole.assets import resolve
from diastole.bench.longtext import Corpus
from diastole.cluster.afd import Apart
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.reproduce.must import at_least, at_most, between, equal_to, less_than
from diastole.reproduce.step_3_attentions import attentions, models
from diastole.reproduce.study import Study
from diastole.sim.step_configs import model
from diastole.sim.step_costs import DEVICES, apart, least_sparsity
from diastole.types import Request

PAPER = "Step-3 is Large yet Affordable: Model-system Co-design for Cost-effective Decoding (arXiv 2507.19427)"

# As the report and the card have them: per token at 8,192 tokens; dollars per million at 8K and 32K.
WORK = {
    "step-3": (2.56e8, 3.27e10, 2.07e10, 5.33e10),
    "deepseek-v3": (2.88e8, 1.47e11, 2.28e10, 4.84e10),
    "qwen3-moe-235b": (7.89e8, 2.52e10, 1.34e10, 2.84e10),
}
DOLLARS = {"step-3": (0.055, 0.129), "deepseek-v3": (0.068, 0.211), "qwen3-moe-235b": (0.062, 0.193)}
SPARSITY = {"H800": 0.058, "H20": 0.007, "A800": 0.031, "910B": 0.034}
CROWD = 12  # streams that decode together
MORE = (24, 48)  # for comparison
MODEL = "smollm2-135m"


def run(study: Study) -> None:
    plans = models(study)  # what is missing is told before anything is measured
    _costs(study)
    attentions(study, plans)
    _apart(study)


def _costs(study: Study) -> None:
    rows, worst = [], 0.0
    for name, told in WORK.items():
        of = model(name)
        work = of.work(8192)
        for what, here, there in zip(("bytes kept", "attention", "projections", "FFN"), work[:4], told, strict=True):
            worst = max(worst, abs(here / there - 1))
            rows.append((name, what, here, there))
        for context, there in zip((8192, 32768), DOLLARS[name], strict=True):
            here = apart(of.work(context), DEVICES).per_million
            worst = max(worst, abs(here / there - 1))
            rows.append((name, f"$ per 1M tokens at {context // 1024}K", here, there))
    study.check("costs computed beside those of the report, worst of 18", 100 * worst, at_most(2), unit="%", claim="0")
    of = model("step-3")
    bounds = {d.name: least_sparsity(of, d) for d in DEVICES if d.name in SPARSITY}
    study.check(
        "bounds of sparsity beside the report's, in its last digit, worst of 4",
        max(abs(bounds[n] - SPARSITY[n]) for n in SPARSITY) / 0.001,
        at_most(0.5),
        claim="0",
    )
    study.check("parameters, in billions", of.parameters / 1e9, between(312, 320), claim="316")
    study.table("computed costs", ("model", "what", "here", "report"), rows)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A crowd that decoded."""

    said: dict[str, list[int]]
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def _apart(study: Study) -> None:
    cores = sorted(os.sched_getaffinity(0))
    most, more_crowds = (12, ()) if study.quick else (64, MORE)
    path = str(resolve(MODEL))
    with LLM(MODEL, threads=2, max_streams=max(MORE), prefix_cache=False, context=1024) as llm:
        prompts = _prompts(llm)
        whole = _decode(llm, prompts[:CROWD], most)
    found: dict[int, Decoded] = {}
    stages: dict[int, tuple[float, float, float]] = {}
    more: list[tuple[int, Decoded, tuple[float, float, float]]] = []
    bf16: Decoded | None = None
    with (
        on(cores[:1]),
        LLM(MODEL, threads=1, max_streams=max(MORE), prefix_cache=False, context=1024) as llm,
        study.progress("micro-batches", 5 + len(more_crowds)) as told,
    ):
        one = _decode(llm, prompts[:CROWD], most)
        told()
        service = llm.engine.services[0]
        decoder: Any = service.model
        for count in (1, 2, 3):
            with Apart(decoder, path, count, cpus=cores[-1:]) as both:
                service.model = both
                found[count], stages[count] = _timed(llm, both, prompts[:CROWD], most)
                told()
                for n in more_crowds if count == 3 else ():
                    more.append((n, *_timed(llm, both, prompts[:n], most)))
                    told()
        with Apart(decoder, path, 3, "bf16", cpus=cores[-1:]) as both:
            service.model = both
            bf16, _ = _timed(llm, both, prompts[:CROWD], most)
            told()
        service.model = decoder
    study.check(
        "texts of attention and FFN apart that differ from one process, float32 between them",
        sum(d.said != whole.said for d in found.values()) + (one.said != whole.said),
        equal_to(0),
        claim="the same",
    )
    share = {count: max(a, f) / step for count, (a, f, step) in stages.items()}
    study.check(
        "3 micro-batches: share of the step in which the busier side works",
        share[3],
        at_least(0.85),
        claim="three stages overlap",
        headline=True,
        why="a layer of a micro-batch of four rows is a fraction of a millisecond on either side, and waking the other "
        "side, and Python between two operators, are as long",
    )
    study.check("bubbles with 3 micro-batches", 100 * (1 - share[3]), less_than(15), unit="%", why="as above")
    study.check("1 micro-batch: the same share", share[1], between(0.35, 0.75), claim="about half")
    pairs = zip(whole.said.values(), bf16.said.values(), strict=True)
    same = sum(a == b for one_text, other in pairs for a, b in zip(one_text, other, strict=True))
    study.note(f"with bfloat16 between the sides {same / (CROWD * most):.0%} of the tokens are the same")
    study.table(
        f"{CROWD} streams decode; one process on both cores {whole.rate:.0f} tokens/s, on one {one.rate:.0f}",
        ("streams", "micro-batches", "tokens/s", "attention, ms", "FFN, ms", "step, ms", "busier side's share"),
        [
            (streams, count, of.rate, *(1e3 * s for s in seconds), max(seconds[:2]) / seconds[2])
            for streams, count, of, seconds in [
                *((CROWD, count, found[count], stages[count]) for count in found),
                *((n, 3, of, seconds) for n, of, seconds in more),
            ]
        ],
    )
    study.note("a token's way there and back has 4,608 bytes per layer in float32, 2,304 in bfloat16")


def _prompts(llm: LLM) -> list[list[int]]:
    corpus, rng = Corpus.of(llm.voice.tokenizer), Random(0)
    return [list(corpus.cut(96, rng)) for _ in range(max(MORE))]


def _decode(llm: LLM, prompts: list[list[int]], most: int, begun: Callable[[], None] = lambda: None) -> Decoded:
    """All prompts are read, then timed from the moment all decode, which ``begun`` is told."""
    engine = llm.engine
    params = SamplingParams(max_tokens=most, temperature=0, ignore_eos=True, seed=0)
    for i, prompt in enumerate(prompts):
        engine.add(Request(str(i), llm.name, np.array(prompt, np.int32), params))
    said: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    began, before = time.perf_counter(), 0
    while engine.busy:
        for event in engine.step() or ():
            said[event.id] += [c.id for c in event.data.chosen]
        if not before and all(said.values()):
            begun()
            began, before = time.perf_counter(), sum(map(len, said.values()))
    return Decoded(said, sum(map(len, said.values())) - before, time.perf_counter() - began)


def _timed(llm: LLM, both: Apart, prompts: list[list[int]], most: int) -> tuple[Decoded, tuple[float, float, float]]:
    """With seconds per step of each side, and of the whole, over steps in which all decode."""
    _decode(llm, prompts, 4)  # touches everything once
    _decode(llm, prompts, 2)
    ffn = [0.0]

    def begun() -> None:
        both.stages.reset()
        ffn[0] = both.ffn_seconds

    found, s = _decode(llm, prompts, most, begun), both.stages
    return found, ((s.whole - s.waiting) / s.steps, (both.ffn_seconds - ffn[0]) / s.steps, s.whole / s.steps)


@contextmanager
def on(cores: list[int]) -> Iterator[None]:
    """This process runs on these, for as long."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
