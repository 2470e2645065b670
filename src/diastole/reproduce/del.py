"""DEL: on a small model that was trained for early exits, and on SmolLM2-135M, which was not: is the exit that pays
found while requests run?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from diastole.bench.drafts import PLAIN, Bench, Cell
from diastole.bench.workloads import requests
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.reproduce import del_small
from diastole.reproduce.aded import facts_of
from diastole.reproduce.del_small import Prompts
from diastole.reproduce.must import at_least, equal_to, less_than
from diastole.reproduce.study import Study
from diastole.types import UserError
from diastole.weights.calibration import find

PAPER = "DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding (arXiv 2504.05598)"

WORK = {"chat": "chat", "code": "code", "copying": "copy"}
DEL, COUNTED, LITERAL = "del, measured costs", "del, costs in layers", "del as published"


def run(study: Study) -> None:
    asked, long, tokens = (1, 1, 16) if study.quick else (14, 5, 128)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    with ExitStack() as stack:
        plain = stack.enter_context(LLM(max_streams=1))
        work, few = (_work(study, plain, count) for count in (asked, long))
        uses = _uses(study, plain)
        different = del_small.run(study)
        engines = {PLAIN: plain}
        engines |= {name: stack.enter_context(LLM(use=(use,), max_streams=1)) for name, use in uses.items()}
        cells = {
            DEL: _cells(study, {n: e for n, e in engines.items() if n != LITERAL}, work, params),
            LITERAL: _cells(study, {n: engines[n] for n in (PLAIN, LITERAL)}, few, params),
        }
    different += sum(s.different for by in cells.values() for cell in by.values() for s in cell.sides.values())
    study.check("greedy texts that differ, both models", different, equal_to(0), claim="lossless")
    _judge(study, cells, adapted=DEL in uses)


def _uses(study: Study, plain: LLM) -> dict[str, str]:
    """Sides beside plain decoding.

    Raises:
        UserError: nobody has trained adapters, and this is no quick look.
    """
    facts = facts_of(plain)
    every = "+".join(map(str, range(1, facts.layers)))
    literal = {LITERAL: f"del:adapters=none,exits={every},cost=layers,rest=0"}
    try:
        find("del", facts, recipe="exits")
    except UserError:
        if not study.quick:
            raise
        study.note("SmolLM2-135M has no adapters yet (diastole train exits): DEL with them is not judged here")
        return literal
    return {DEL: "del", COUNTED: "del:cost=layers,rest=0", **literal}


def _work(study: Study, plain: LLM, count: int) -> Prompts:
    """So many prompts of each kind of work.

    Raises:
        UserError: the questions of Spec-Bench are not there.
    """
    voice = plain.voice
    asked = {name: requests(kind, count, voice.tokenizer, seed=study.seed) for name, kind in WORK.items()}
    return {name: [a.ids(voice) for a in of] for name, of in asked.items()}


def _cells(study: Study, engines: Mapping[str, LLM], work: Prompts, params: SamplingParams) -> dict[str, Cell]:
    """By kind of work; none where there is nothing to compare."""
    if len(engines) < 2:
        return {}
    bench, total = Bench(engines, params), sum(map(len, work.values())) * len(engines)
    with study.progress(f"SmolLM2-135M: {' and '.join(engines)}", total) as told:
        return {name: bench.cell(name, texts, 1, 1, told) for name, texts in work.items()}


def _judge(study: Study, cells: Mapping[str, Mapping[str, Cell]], adapted: bool) -> None:
    if adapted:
        speeds = {name: cell.speedup(DEL) for name, cell in cells[DEL].items()}
        worst = min(speeds, key=lambda name: speeds[name])
        study.check(
            f"SmolLM2-135M, {DEL}: times as fast as plain, worst of {len(speeds)} kinds of work ({worst})",
            speeds[worst],
            at_least(0.97),
            unit="x",
            why=f"{cells[DEL][worst].sides[DEL].rate:.0%} of its guesses are right, and it learns so from rounds that "
            "do not pay, in each answer anew",
        )
    literal = {name: cell.speedup(LITERAL) for name, cell in cells[LITERAL].items()}
    best = max(literal, key=lambda name: literal[name])
    study.check(
        f"SmolLM2-135M, {LITERAL}: times as fast as plain, best of {len(literal)} kinds of work ({best})",
        literal[best],
        less_than(1.0),
        unit="x",
        claim="made for models trained for early exits",
    )
    study.note(
        "SmolLM2-135M: one layer is 3.5 M products a row, the head 28.3 M; as published, costs count layers only, and "
        "shadow tokens of all layers take the head 29 times"
    )
    study.table(
        "SmolLM2-135M",
        ("work", "side", "times as fast as plain", "tokens per step", "right of guesses"),
        [
            (name, side, cell.speedup(side), cell.sides[side].per_step, cell.sides[side].rate)
            for by in cells.values()
            for name, cell in by.items()
            for side in cell.sides
            if side != PLAIN
        ],
    )
