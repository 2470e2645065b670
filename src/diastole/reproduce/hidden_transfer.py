"""Hidden Transfer on SmolLM2-135M: does anything real depend on pseudo rows, what do they foresee, and does it pay?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from diastole.bench.drafts import PLAIN, Bench, Cell, Side
from diastole.bench.rig import Rig
from diastole.bench.workloads import requests
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes.own_text import generate
from diastole.reproduce import hidden_transfer_maps as maps
from diastole.reproduce import hidden_transfer_rows as rows
from diastole.reproduce.aded import facts_of
from diastole.reproduce.must import at_least, equal_to, more_than
from diastole.reproduce.study import Study
from diastole.weights.calibration import find

PAPER = "Hidden Transfer: pseudo states in the upper layers foresee the tokens behind the next one (arXiv 2404.12022)"

NAME = "hidden-transfer"
SHAPES = {  # nodes, knobs
    "chain of 1": (1, "shape=chain"),
    "chain of 2": (2, "shape=chain"),
    "chain of 3": (3, "shape=chain"),
    "tree of 3": (3, "topk=4"),
    "tree of 6": (6, "topk=4"),
}
SMART = "with smartspec"  # which may take less of a draft than there is
WORK = {"chat": "chat", "code": "code", "copying": "copy"}  # name: kind of requests
CROWD = 16  # streams at once
PAIRS = 4  # streams where every step is computed with and without pseudo rows: all pages are looked at each time


class Size(NamedTuple):
    """How much is measured."""

    shapes: Sequence[str]
    smart: Sequence[str]  # of those, also with smartspec
    asked: int  # requests of each kind of work
    rounds: int  # the first chooses what the others judge
    tokens: int  # of each answer
    crowd: int  # requests at once
    twice: int  # requests whose every step is computed with and without pseudo rows
    said: int  # tokens of text to learn from
    learning: maps.Size


FULL = Size([*SHAPES], ["chain of 3", "tree of 6"], 6, 3, 128, 64, 24, 45_000, maps.FULL)
QUICK = Size(["chain of 3", "tree of 6"], ["tree of 6"], 1, 2, 48, 8, 3, 6_000, maps.QUICK)


def run(study: Study, weights: str = "") -> None:
    """weights: file of the maps that are served; empty: beside the model, or Diastole's own."""
    size = QUICK if study.quick else FULL
    with ExitStack() as stack:
        plain = stack.enter_context(LLM(max_streams=48))
        facts = facts_of(plain)
        tensors = find(NAME, facts, weights, NAME).tensors
        with Rig(context=1024) as rig:
            cost = rows.costs(study, rig, tensors, [1, *sorted({1 + SHAPES[name][0] for name in size.shapes})])
        cells = _cells(study, plain, weights, size)
        different = _crowd(study, plain, weights, size.crowd)
        twice = _twice(study, weights, size.twice)
        with study.progress("the model's own text", size.said // 250) as told:
            own = generate(plain, facts.fingerprint, size.said, study.seed + 1, lambda n: told())
    lossless(study, cells, different, twice)
    with Rig() as rig:
        maps.learn(study, rig, own, tensors["layers"].tolist(), size.learning)
    speed(study, cells, priced(cost, size.shapes, len(tensors["maps"])))
    rows.tell(study, cost)


def _use(name: str, weights: str) -> str:
    nodes, knobs = SHAPES[name]
    return f"{NAME}:nodes={nodes},{knobs}" + (f",weights={weights}" if weights else "")


def _asked(llm: LLM, kind: str, count: int, seed: int) -> list[list[int]]:
    return [asked.ids(llm.voice) for asked in requests(kind, count, llm.voice.tokenizer, seed=seed)]


# ---- measuring


def _cells(study: Study, plain: LLM, weights: str, size: Size) -> dict[str, Cell]:
    """One stream at a time, by kind of work."""
    sides = {name: [_use(name, weights), f"fixed:k={SHAPES[name][0]}"] for name in size.shapes}
    sides |= {f"{name} {SMART}": [_use(name, weights), "smartspec"] for name in size.smart}
    params = SamplingParams(max_tokens=size.tokens, temperature=0, ignore_eos=True)
    with ExitStack() as stack:
        engines = {PLAIN: plain}
        engines |= {name: stack.enter_context(LLM(use=tuple(use), max_streams=1)) for name, use in sides.items()}
        bench, cells = Bench(engines, params), {}
        with study.progress("chains and trees", len(WORK) * size.asked * size.rounds * len(engines)) as told:
            for name, kind in WORK.items():
                cells[name] = bench.cell(name, _asked(plain, kind, size.asked, study.seed), 1, size.rounds, told)
    return cells


def _crowd(study: Study, plain: LLM, weights: str, count: int) -> dict[str, int]:
    """Many requests together, every other one sampled with a seed: texts that are not those of plain decoding."""
    wishes = []
    for i, ids in enumerate(_asked(plain, "chat", count, study.seed + 1)):
        temperature = (0.0, 0.8)[i % 2]
        wishes.append((ids, SamplingParams(max_tokens=64, temperature=temperature, seed=i, ignore_eos=True)))
    with (
        study.progress("many requests at once", 2) as told,
        LLM(use=(_use("tree of 6", weights),), max_streams=CROWD) as llm,
    ):
        sides = []
        for engine in (plain, llm):
            sides.append([done.ids for done in engine.generate_each(wishes)])
            told()
    wrong = [a != b for a, b in zip(*sides, strict=True)]
    return {"greedy": sum(wrong[::2]), "sampled": sum(wrong[1::2])}


def _twice(study: Study, weights: str, count: int) -> rows.Twice:
    """Several streams with trees, and prompts in pieces beside them, every step computed with and without."""
    use = (_use("tree of 6", weights),)
    with (
        study.progress("with and without pseudo rows", 1) as told,
        LLM(use=use, max_streams=PAIRS, context=640, step_tokens=128) as llm,
    ):
        twice = rows.Twice(llm.engine.services[0])
        prompts = [ids[:512] for kind in WORK.values() for ids in _asked(llm, kind, count // len(WORK), study.seed + 2)]
        llm.generate(prompts, SamplingParams(max_tokens=48, temperature=0, ignore_eos=True))
        told()
    return twice


# ---- judging


def lossless(study: Study, cells: Mapping[str, Cell], different: Mapping[str, int], twice: rows.Twice) -> None:
    alone = sum(s.different for cell in cells.values() for s in cell.sides.values())
    study.check("greedy texts that differ", alone + different["greedy"], equal_to(0), claim="lossless")
    study.check("sampled texts that differ, of the same seeds", different["sampled"], equal_to(0), claim="lossless")
    study.check(
        "logits of real rows with and without pseudo rows, largest difference",
        twice.difference if twice.rows else float("nan"),
        equal_to(0),
        claim="real rows never see pseudo rows",
    )
    study.check("bytes of pages that differ with pseudo rows", twice.changed, equal_to(0))
    study.note(
        f"with and without pseudo rows: {twice.batches} steps with {twice.rows} rows whose logits were read; "
        f"drafts branched in {twice.branched}, streams without one were in {twice.mixed}"
    )


def speed(study: Study, cells: Mapping[str, Cell], cost: Mapping[str, float]) -> None:
    every = [(work, name) for work, cell in cells.items() for name in cell.sides if name != PLAIN]
    work, name = max(every, key=lambda at: cells[at[0]].ratios(at[1])[0])
    study.check(
        f"times as fast as plain decoding, the fastest of the first round in the others: {work}, {name}",
        median(cells[work].ratios(name)[1:]),
        more_than(1.0),
        unit="x",
        claim="1.3x to 2.3x on GPUs",
        headline=True,
        why=_why(cells, cost),
    )
    chat = cells["chat"]
    study.check(
        "chat with smartspec, the slowest: times as fast",
        min(chat.speedup(name) for name in chat.sides if name.endswith(SMART)),
        at_least(0.97),
        unit="x",
        why="smartspec foretells a step by its real rows: it cannot see that one without a draft has no pseudo rows",
    )
    study.table(
        "by work",
        ("work", "side", "times as fast", "tokens per step", "cost of a step", "ms per step", "rows per step",
         "right of guesses", "tokens/s"),
        [
            (work, name, cell.speedup(name), side.per_step, cost.get(name, ""), *_pace(side))
            for work, cell in cells.items()
            for name, side in cell.sides.items()
        ],
    )  # fmt: skip
    study.note("cost of a step: times one real row, as measured with as many rows at once; it pays if it brings more")


def priced(cost: rows.Costs, shapes: Sequence[str], offsets: int) -> dict[str, float]:
    """By shape, what a step costs beside plain decoding's. What smartspec takes differs from step to step."""
    nodes = {name: SHAPES[name][0] for name in shapes}
    return {name: cost[1 + n, min(n, offsets)] / cost[1, 0] for name, n in nodes.items()}


def _why(cells: Mapping[str, Cell], cost: Mapping[str, float]) -> str:
    """Of the drafts that come nearest to paying."""
    near = [(cell.sides[name].per_step / cost[name], work, name) for work, cell in cells.items() for name in cost]
    _, work, name = max(near)
    brings = cells[work].sides[name].per_step
    return f"at best, {work} with a {name}, a step brings {brings:.2f} tokens and costs {cost[name]:.2f} plain ones"


def _pace(side: Side) -> tuple[float, float, float, float]:
    """Milliseconds and real rows of a step, the share of right guesses, tokens per second."""
    seconds, steps = sum(side.seconds), max(side.steps, 1)
    return 1e3 * seconds / steps, (side.steps + side.drafted) / steps, side.rate, side.tokens / max(seconds, 1e-9)
