"""SpecDec++ on longspec's block: is stopping at the right guess better than any fixed number of guesses?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from diastole.bench.drafts import PLAIN, Bench, Cell, Side
from diastole.bench.rig import Rig
from diastole.bench.workloads import requests
from diastole.heads.acceptance import AcceptanceHead
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes.own_text import generate
from diastole.recipes.specdec_pp import area, calibration_error, collect
from diastole.reproduce.aded import facts_of
from diastole.reproduce.law import string_law
from diastole.reproduce.must import at_least, equal_to, less_than, more_than
from diastole.reproduce.study import Study
from diastole.weights.calibration import find

PAPER = "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths (arXiv 2405.19715)"

FIXED = (1, 2, 3, 4, 6, 8)
THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7)
WORK = {"chat": "chat", "code": "code", "copying": "copy"}


def _chain(k: int) -> str:
    return "longspec:tree_shape=" + "+".join("1" * k)


def run(study: Study) -> None:
    asked, tokens = (2, 48) if study.quick else (14, 128)
    fixed, thresholds = ((2, 4), (0.3, 0.7)) if study.quick else (FIXED, THRESHOLDS)
    sides = {f"K = {k}": [_chain(k), f"fixed:k={k}"] for k in fixed}
    sides |= {f"threshold {t:g}": [_chain(8), f"specdec-pp:threshold={t}"] for t in thresholds}
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    with ExitStack() as stack:
        plain = stack.enter_context(LLM(max_streams=48))
        engines = {PLAIN: plain}
        engines |= {name: stack.enter_context(LLM(use=tuple(use), max_streams=1)) for name, use in sides.items()}
        voice, bench, cells = plain.voice, Bench(engines, params), {}
        with study.progress("fixed and adaptive lengths", len(WORK) * asked * len(engines)) as told:
            for name, kind in WORK.items():
                texts = [a.ids(voice) for a in requests(kind, asked, voice.tokenizer, seed=study.seed)]
                cells[name] = bench.cell(name, texts, 1, 1, told)
        error, under, share = _head(study, plain)
    _judge(study, cells)
    study.check("calibration error of the head, held out", error, less_than(0.05))
    study.check("area under the head's curve, held out", under, more_than(0.65), baseline=share)
    p = string_law(study, 20_000 if study.quick else 200_000)
    study.check("law of sampled strings, p of chi-square against the exact one", p, more_than(0.01), claim="lossless")
    study.note("the drafter is longspec's block; thresholds are of calibrated probabilities")


def _head(study: Study, plain: LLM) -> tuple[float, float, float]:
    """On text that neither the block nor the head has seen: calibration error, area, share of right guesses."""
    said, positions = (6_000, 4_000) if study.quick else (60_000, 40_000)
    facts = facts_of(plain)
    with study.progress("the model's own text", said // 250) as told:
        texts = generate(plain, facts.fingerprint, said, study.seed + 101, lambda n: told())
    block, head = (find(name, facts) for name in ("longspec", "specdec-pp"))
    with Rig() as rig, study.progress("guesses", positions) as told:
        seen = collect(rig, texts, block.tensors, positions, study.seed, lambda n: None)
        told()
    told_right = AcceptanceHead(head.tensors)(seen.hidden)
    return calibration_error(told_right, seen.right), area(told_right, seen.right), float(seen.right.mean())


def _wasted(side: Side) -> float:
    """Guesses for nothing, by token."""
    return (side.drafted - side.kept) / max(side.tokens, 1)


def _calls(side: Side) -> float:
    """Steps of the target, by token."""
    return side.steps / max(side.tokens, 1)


def _best(cell: Cell, names: Sequence[str]) -> str:
    return max(names, key=cell.speedup)


def _judge(study: Study, cells: Mapping[str, Cell]) -> None:
    names = [n for n in next(iter(cells.values())).sides if n != PLAIN]
    fixed, adaptive = ([n for n in names if n.startswith(kind)] for kind in ("K = ", "threshold "))
    study.check(
        "greedy texts that differ",
        sum(s.different for c in cells.values() for s in c.sides.values()),
        equal_to(0),
        claim="lossless",
    )
    right = [cell.sides[fixed[0]].rate for cell in cells.values()]
    better = 0
    for cell in cells.values():
        best = cell.sides[_best(cell, fixed)]
        better += any(
            _wasted(cell.sides[n]) < _wasted(best) and _calls(cell.sides[n]) <= _calls(best) for n in adaptive
        )
    study.check(
        "kinds of work where a threshold wastes fewer guesses than the best fixed length, with no more steps",
        better,
        at_least(2, f"2 of {len(cells)}"),
        claim="better at both",
        why=f"of single guesses {min(right):.0%} to {max(right):.0%} are right, and whether to stop is judged when the "
        "first is made: a threshold wastes no less than one guess per step does",
    )
    ratios = {
        name: cell.speedup(_best(cell, adaptive)) / cell.speedup(_best(cell, fixed)) for name, cell in cells.items()
    }
    inorder = sorted(ratios.values())
    study.check(
        "speed of the best threshold beside the best fixed length, second of three kinds of work",
        inorder[1],
        at_least(1.0),
        unit="x",
        claim="1.07x to 1.11x",
        headline=True,
        why="with as many steps per token as one guess each (the table) they take longer: judging is a head's work "
        "after every guess",
    )
    study.check("the same, the worst of three", inorder[0], at_least(0.97), unit="x", why="as above")
    study.table(
        "by work",
        ("work", "side", "times as fast as plain", "steps per token", "wasted guesses per token", "right of guesses"),
        [
            (name, side, cell.speedup(side), _calls(s), _wasted(s), s.rate)
            for name, cell in cells.items()
            for side, s in cell.sides.items()
        ],
    )
    for name, cell in cells.items():
        for kind, own in (("fixed", fixed), ("threshold", adaptive)):
            study.curve(
                f"{name}: steps and waste",
                [_wasted(cell.sides[n]) for n in own],
                [_calls(cell.sides[n]) for n in own],
                label=kind,
                xlabel="wasted guesses per token",
                ylabel="steps per token",
            )
