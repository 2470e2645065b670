"""SmartSpec with prompt lookup on SmolLM2-135M: is it never slower than the better of guessing and not guessing?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diastole.bench.arrivals import Served, poisson, serve
from diastole.bench.workloads import requests
from diastole.engine.engine import Engine
from diastole.engine.service import Service
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.reproduce.must import at_least, at_most, equal_to, less_than
from diastole.reproduce.passing import Passing
from diastole.reproduce.study import Study
from diastole.slots import CostModel
from diastole.types import Array, Draft, Grant, Stream

PAPER = "SmartSpec: Optimizing Speculative Decoding for Serving LLMs Using Goodput (arXiv 2406.14066)"

DRAFTER = "ngram:k=8"
FIXED = (1, 2, 4, 8)
ARMS: dict[str, tuple[str, ...]] = {
    "no drafts": (),
    **{f"k = {k}": (DRAFTER, f"fixed:k={k}") for k in FIXED},
    "smartspec": (DRAFTER, "smartspec"),
    "smartspec, same k for all": (DRAFTER, "smartspec:per_request=false"),
}
TASKS = {"edit": "copy", "chat": "chat"}  # task: kind of work; what is edited is mostly repeated
RATES = (0.1, 0.3, 0.6, 0.9, 1.2)  # of capacity
COUNTS = (12, 20, 32, 48, 48)  # requests at each
TOKENS = 64
PARAMS = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
REFRESH = 20  # steps, SmartSpec's default


@dataclass(eq=False, slots=True)
class Watch(Passing):
    """Stands in for an engine's cost model and looks over its controller's shoulder."""

    errors: list[float] = field(default_factory=list)  # predicted over measured seconds of steps that only decode
    rows: list[int] = field(default_factory=list)  # guesses of each such step

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        if all(s.left == 1 for s, _ in grants):
            self.errors.append(self.cost.predict(grants) / seconds)
            self.rows.append(sum(n - 1 for _, n in grants))
        self.cost.learn(grants, seconds)


@dataclass(eq=False, slots=True)
class Arm:
    """One engine."""

    llm: LLM
    engine: Engine
    watch: Watch
    expected: list[float] = field(default_factory=list)  # tokens that decided steps were thought to bring
    brought: list[int] = field(default_factory=list)  # and did

    @property
    def service(self) -> Service:
        return self.engine.services[0]


def _open(use: Sequence[str], stack: ExitStack, streams: int) -> Arm:
    llm = stack.enter_context(LLM("smollm2-135m", use=tuple(use), max_streams=streams, prefix_cache=False))
    engine = llm.engine
    service = engine.services[0]
    arm = Arm(llm, engine, Watch(service.cost))
    service.cost = arm.watch
    loop: Any = service.loop
    if use:
        loop.cost = arm.watch
    if "smartspec" in str(use):
        _overhear(arm, loop)
    return arm


def _overhear(arm: Arm, loop: Any) -> None:
    """Note what the controller expects of each step that it decides about, and what comes of it."""
    pace, commit = loop.pace, loop.commit
    trim: Callable[..., Mapping[Stream, Sequence[int]]] = pace.trim
    decided = [False]

    def told(
        grants: Sequence[Grant], drafts: Mapping[Stream, Draft], cost: CostModel
    ) -> Mapping[Stream, Sequence[int]]:
        chosen = trim(grants, drafts, cost)
        decided[0] = bool(chosen)
        return chosen

    def counted(batch: Any, output: Array, now: float) -> Any:
        outcome = commit(batch, output, now)
        if decided[0] and batch.sown:
            arm.expected.append(pace.expected)
            arm.brought.append(sum(e.units for e in outcome.events))
        decided[0] = False
        return outcome

    pace.trim, loop.commit = told, counted


def run(study: Study) -> None:
    rates, counts = ((0.1, 1.2), (4, 16)) if study.quick else (RATES, COUNTS)
    names = ("no drafts", "k = 4", "smartspec") if study.quick else tuple(ARMS)
    with ExitStack() as stack:
        arms = {name: _open(ARMS[name], stack, max(counts)) for name in names}
        prompts = {task: _prompts(arms["no drafts"], kind, max(counts), study.seed) for task, kind in TASKS.items()}
        latencies: dict[tuple[str, float], dict[str, float]] = {}
        different = 0
        runs = len(arms) * len(TASKS) * len(rates) + 2 * len(arms)
        with study.progress("requests arriving", runs) as told:
            for task, asked in prompts.items():
                capacity = 0.0
                for name, arm in arms.items():  # touches everything once
                    done = serve(arm.engine, arm.llm.name, asked[:16], [0.0] * 16, PARAMS)
                    capacity = 16 / done.seconds if name == "no drafts" else capacity
                    told()
                for rate, count in zip(rates, counts, strict=True):
                    arrivals = poisson(count, rate * capacity, study.seed)
                    served: dict[str, Served] = {}
                    for name, arm in arms.items():
                        served[name] = serve(arm.engine, arm.llm.name, asked[:count], arrivals, PARAMS)
                        told()
                    latencies[task, rate] = {name: s.mean for name, s in served.items()}
                    different += sum(s.said != served["no drafts"].said for s in served.values())
        _judge(study, arms, latencies, different)
        _switch(study, arms["smartspec"], prompts)


def _prompts(arm: Arm, kind: str, count: int, seed: int) -> list[list[int]]:
    voice = arm.llm.voice
    return [asked.ids(voice) for asked in requests(kind, count, voice.tokenizer, seed=seed)]


def _judge(
    study: Study, arms: Mapping[str, Arm], latencies: Mapping[tuple[str, float], Mapping[str, float]], different: int
) -> None:
    smart = arms["smartspec"]
    study.check("greedy texts that differ between arms", different, equal_to(0), claim="lossless")
    errors = np.abs(np.array(smart.watch.errors) - 1) * 100
    study.check(
        "seconds of a decode step, median error of what is predicted", float(np.median(errors)), less_than(10), unit="%"
    )
    expected, brought = sum(smart.expected), sum(smart.brought)
    study.check(
        "tokens of the steps that guess, predicted beside what came",
        100 * abs(expected / max(brought, 1) - 1),
        less_than(10),
        unit="%",
    )
    ratios = {}
    for (task, rate), by_arm in latencies.items():
        best = min(value for name, value in by_arm.items() if not name.startswith("smartspec"))
        ratios[task, rate] = by_arm["smartspec"] / best
    worst = max(ratios, key=lambda cell: ratios[cell])
    study.check(
        f"mean latency beside the best of all others, worst of {len(ratios)} loads ({worst[0]}, {worst[1]:g})",
        ratios[worst],
        at_most(1.03),
        unit="x",
        claim="never worse than without, at any rate",
        headline=True,
        why=f"the best of {len(latencies[worst]) - 2} others where it is worst of {len(ratios)} is the luckiest, too",
    )
    low, high = min(rate for _, rate in latencies), max(rate for _, rate in latencies)
    edit = latencies["edit", low]
    best_fixed = min(latency for name, latency in edit.items() if name.startswith("k = "))
    study.check(
        f"edits at {low:g} of capacity: times as fast as without drafts",
        edit["no drafts"] / edit["smartspec"],
        at_least(1.3),
        unit="x",
        claim="up to 3.2x on GPUs",
        why=f"the best fixed length brings {edit['no drafts'] / best_fixed:.2f}x",
    )
    slower = {
        (name, task): latencies[task, high][name] / latencies[task, high]["no drafts"]
        for task in TASKS
        for name in arms
        if name.startswith("k = ")
    }
    name, task = max(slower, key=lambda cell: slower[cell])
    study.check(
        f"{task} at {high:g} of capacity with {name}: mean latency beside no drafts",
        slower[name, task],
        at_least(1.1),
        unit="x",
        claim="fixed lengths become slower than none",
    )
    study.table(
        "mean latency in seconds",
        ("task", "rate of capacity", *arms),
        [(task, rate, *(by_arm[a] for a in arms)) for (task, rate), by_arm in latencies.items()],
    )
    for task in TASKS:
        rates = [rate for t, rate in latencies if t == task]
        for arm in arms:
            study.curve(
                f"{task}: mean latency beside no drafts",
                rates,
                [latencies[task, r][arm] / latencies[task, r]["no drafts"] for r in rates],
                label=arm,
                xlabel="arrivals, of capacity",
                ylabel="times",
            )


def _switch(study: Study, arm: Arm, prompts: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """One stream at a time: edits, then chats. How long until the number of guesses is that of chats?"""
    count = 3 if study.quick else 8
    rows: dict[str, list[int]] = {}
    for task in ("edit", "chat"):
        arm.watch.rows.clear()
        for prompt in prompts[task][:count]:
            serve(arm.engine, arm.llm.name, [prompt], [0.0], PARAMS)
        rows[task] = list(arm.watch.rows)
    periods = [
        float(np.mean(rows["chat"][i : i + REFRESH])) for i in range(0, len(rows["chat"]) - REFRESH + 1, REFRESH)
    ]
    settled = float(np.mean(periods[len(periods) // 2 :]))
    before = float(np.mean(rows["edit"][-3 * REFRESH :]))
    scatter = max(float(np.std(periods[len(periods) // 2 :])) * 2, 0.25)
    first = next((i for i, k in enumerate(periods) if abs(k - settled) <= scatter), len(periods))
    study.check("refresh periods until the number of guesses has settled after the task switched", first, less_than(3))
    study.note(f"guesses per step: {before:.2f} at the end of the edits, {settled:.2f} in the second half of the chats")
