"""KV prediction trained with the paper's loss on small models, served by the engine: beside what is as fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from diastole.bench.rig import Rig
from diastole.recipes import kv_prediction_small as recipe
from diastole.recipes.kv_prediction_small import COPYING, STUDENTS, Plan, Trained
from diastole.reproduce.kv_prediction_prompts import Side, Text, as_fast, losses, medians, recent, scattered
from diastole.reproduce.must import at_most, between, less_than
from diastole.reproduce.study import Study
from diastole.types import Array
from diastole.weights import open_checkpoint
from diastole.weights.calibration import Calibration, about

NAME = "kv-prediction"
PLACE = Path("kv-prediction-small")  # of the trainings, which go on there
PROMPT, REST, LONG = 448, 64, 2048  # tokens
C, LP = "kvp-c", "kvp-lp"
ALONE = {"c": "small model alone", "lp": "pruned model alone"}
BASE, SCATTERED, RECENT = "base", "base, some tokens", "base, last tokens"


class Size(NamedTuple):
    """How much is measured."""

    plan: Plan
    texts: int  # of each kind
    rounds: int


FULL = Size(Plan(), 24, 9)
QUICK = Size(Plan(strings=1, steps=2, told=1, tokens=512), 1, 3)


@dataclass(frozen=True, slots=True)
class Served:
    """Rigs by name: the base, auxiliaries alone, and the base with each student's maps."""

    rigs: Mapping[str, Rig]
    apart: Mapping[str, Array]

    def side(self, name: str) -> Side:
        return Side(self.rigs[name], name in STUDENTS)


def run(study: Study) -> None:
    size = QUICK if study.quick else FULL
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) if study.quick else PLACE
        plan = size.plan
        steps = 2 * (plan.strings + plan.steps) + (len(ALONE) + len(STUDENTS)) * plan.told
        with study.progress("small models learn", steps) as done:
            trained = recipe.train(plan, place, lambda name, step, loss: done())
        served = stack.enter_context(serve(trained, place))
        kept = ttft(study, served, size.rounds)
        found = judged(study, served, kept, size.texts)
    taught = " + ".join(map(str, (plan.strings, plan.steps, plan.told)))
    study.note(f"small models: trained for {trained.seconds / 60:.1f} minutes in all, {taught} steps")
    study.note("what the small models look back with lies in the first and the middle layer, where it was begun")
    if study.quick:
        study.note(f"{plan.steps} steps teach too little: what small models say is not judged")
    else:
        judge(study, found, linear(trained, study.seed))
    tell(study, found, kept)


@contextmanager
def serve(trained: Trained, place: Path) -> Iterator[Served]:
    """Write the models and maps, and load them."""
    paths = {BASE: written(trained.base, place / "base", place)}
    for name, model in trained.alone.items():
        paths[ALONE[name]] = written(model, place / f"alone-{name}", place)
    with ExitStack() as stack:
        rigs = {name: stack.enter_context(Rig(str(path), weights="bf16")) for name, path in paths.items()}
        checkpoint = open_checkpoint(paths[BASE])
        facts = rigs[BASE].decoder.facts(checkpoint)
        checkpoint.close()
        for name, student in trained.students.items():
            folder = written(student.auxiliary, place / name.replace(" ", "-"), place)
            auxiliary = open_checkpoint(folder)
            said = about(NAME, facts) | {"aux": auxiliary.fingerprint}
            auxiliary.close()
            Calibration(student.tensors(), said).write(folder / "maps.safetensors")
            use = f"{NAME}:maps={folder / 'maps.safetensors'},aux={folder},min_prompt=1"
            rigs[name] = stack.enter_context(Rig(str(paths[BASE]), use=(use,), weights="bf16"))
        yield Served(rigs, trained.apart)


def written(model: recipe.Llama, folder: Path, place: Path) -> Path:
    """A model with its tokenizer."""
    model.save(folder)
    copyfile(place / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


# ---- measuring


def ttft(study: Study, served: Served, rounds: int) -> dict[str, int]:
    """Judge how soon first answers come, long prompts and decode steps; of the base's tokens, how many of PROMPT are
    read in the time that each student takes."""
    ids = np.resize(np.concatenate([*served.apart.values()]), LONG)
    work = {name: partial(served.side(name).first, ids) for name in (BASE, C, LP, *ALONE.values())}
    times = study.interleaved(work, rounds, what=f"first answers to {LONG} tokens")
    study.check(
        f"small models, {LONG} tokens: first answer with a quarter of the layers, beside the base",
        times.median(LP) / times.median(BASE),
        at_most(0.45),
        unit="x",
        claim="follows the auxiliary's FLOPs",
        why="a step has costs that do not shrink with the layers, and small models' steps are mostly these",
    )
    study.table(
        f"small models: first answer to {LONG} tokens",
        ("side", "ms", "beside the base"),
        [(name, 1e3 * times.median(name), times.median(name) / times.median(BASE)) for name in work],
    )
    _decoding(study, served, rounds)
    short, fractions = ids[:PROMPT], (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
    lengths = [max(int(PROMPT * f), 8) for f in fractions]
    turns = {name: partial(served.side(name).first, short) for name in STUDENTS}
    turns |= {f"base, {n}": partial(served.side(BASE).first, short[:n]) for n in lengths}
    times = study.interleaved(turns, rounds, what=f"first answers to {PROMPT} tokens")
    measured = medians(times, "base, ", lengths)
    return {name: as_fast(times.median(name), measured) for name in STUDENTS}


def _decoding(study: Study, served: Served, rounds: int) -> None:
    """Steps after a prompt that was told beside those after one that was read."""
    ids, steps = np.resize(np.concatenate([*served.apart.values()]), PROMPT), 256
    sides = {"read": Side(served.rigs[LP]), "told": Side(served.rigs[LP], True)}

    def decode(name: str) -> None:
        side = sides[name]
        stream = opened[name] = side.rig.fork(opened[name])
        for _ in range(steps):
            side.rig.step({stream: 1})
        side.rig.close(stream)
        opened[name] = first[name]

    opened = {name: side.open(ids) for name, side in sides.items()}
    first = dict(opened)
    for name, side in sides.items():
        side.rig.absorb(opened[name])
    times = study.interleaved({name: partial(decode, name) for name in sides}, 4 * rounds, what="decode steps")
    for name, side in sides.items():
        side.rig.close(first[name])
    study.check(
        "small models: decode steps after a prompt that was told, speed beside one that was read",
        times.speedup("told", over="read"),
        between(0.97, 1.03),
        unit="x",
        claim="the auxiliary is never called again",
    )


def texts(apart: Mapping[str, Array], count: int, seed: int) -> dict[str, list[Text]]:
    """By kind: prompts with what follows them; copying is of random tokens that come again."""
    rng, found = np.random.default_rng([seed, 7]), {}
    for name, ids in apart.items():
        starts = rng.integers(0, len(ids) - PROMPT - REST, count)
        found[name] = [Text(ids[at : at + PROMPT], ids[at + PROMPT : at + PROMPT + REST]) for at in starts.tolist()]
    rows = [recipe.repeated(PROMPT + REST, PROMPT // 2, recipe.BASE.vocab, rng).astype(np.int32) for _ in range(count)]
    found[COPYING] = [Text(row[:PROMPT], row[PROMPT:]) for row in rows]
    return found


Grades = dict[str, dict[str, tuple[float, float]]]  # by side and kind of text: nats per token, share of right tokens


def judged(study: Study, served: Served, kept: Mapping[str, int], count: int) -> Grades:
    """How likely each side finds what follows."""
    asked = texts(served.apart, count, study.seed)
    sides = {name: served.side(name) for name in served.rigs}
    sides |= {f"{SCATTERED}, as {name}": Side(served.rigs[BASE], cut=scattered(kept[name], 0)) for name in (C, LP)}
    sides |= {f"{RECENT}, as {name}": Side(served.rigs[BASE], cut=recent(kept[name])) for name in (C, LP)}
    found: Grades = {}
    with study.progress("small models go on", len(sides) * len(asked)) as done:
        for name, side in sides.items():
            found[name] = {}
            for kind, those in asked.items():
                logits = [side.logits(text) for text in those]
                nats = [losses(x, t.rest).mean() for x, t in zip(logits, those, strict=True)]
                right = [(x.argmax(-1) == t.rest).mean() for x, t in zip(logits, those, strict=True)]
                found[name][kind] = float(np.mean(nats)), float(np.mean(right))
                done()
    return found


# ---- judging


def nats(of: Mapping[str, tuple[float, float]]) -> float:
    """Of all kinds of text."""
    return float(np.mean([loss for loss, _ in of.values()]))


def linear(trained: Trained, seed: int) -> dict[str, float]:
    """Of random tokens: how much of the keys in the base's middle layer, where it looks back, a linear map could tell
    from each student's auxiliary."""
    rng = np.random.default_rng([seed, 8])
    rows = np.stack([recipe.repeated(PROMPT, PROMPT // 2, recipe.BASE.vocab, rng) for _ in range(24)])
    ids, middle = torch.from_numpy(rows.astype(np.int64)), recipe.BASE.layers // 2
    return {name: recipe.explained(student, trained.base, ids)[middle] for name, student in trained.students.items()}


def judge(study: Study, found: Grades, told: Mapping[str, float]) -> None:
    for name, alone in ((C, ALONE["c"]), (LP, ALONE["lp"])):
        study.check(
            f"small models: nats per token after a prompt, {name}",
            nats(found[name]),
            less_than(nats(found[alone]), alone),
            baseline=nats(found[alone]),
            why=f"{_told(found, told, name)}; the base has {nats(found[BASE]):.2f} nats, the {alone} "
            f"{nats(found[alone]):.2f}",
            claim="more accurate than the auxiliary alone",
            headline=name == LP,
        )
        for rival in (SCATTERED, RECENT):
            other = nats(found[f"{rival}, as {name}"])
            study.check(
                f"small models: {name} beside the base with as many tokens as it reads in that time, {rival}",
                nats(found[name]),
                less_than(other, rival),
                baseline=other,
                why=_told(found, told, name),
                claim="more accurate than token pruning at equal TTFT",
            )
    for name in (name for name in STUDENTS if name not in (C, LP)):
        study.check(
            f"small models: {C} beside {name}",
            nats(found[C]),
            less_than(nats(found[name]), name),
            baseline=nats(found[name]),
            why=f"{_told(found, told, C)}; {_beside_reading(found, C, name)}",
            claim="each part of the loss helps",
        )


def _told(found: Grades, told: Mapping[str, float], name: str) -> str:
    """What the base does with keys and values that it was told, of tokens that come again, and what they can hold."""
    right, own = found[name][COPYING][1], found[BASE][COPYING][1]
    return (
        f"of tokens that come again it says {right:.1%}, the base alone {own:.1%}: of the base's keys in its middle "
        f"layer the best linear map of the auxiliary's tells {max(told[name], 0.0):.0%}"
    )


def _beside_reading(found: Grades, *names: str) -> str:
    """What being told costs beside reading."""
    said = ", ".join(f"{name} {nats(found[name]) - nats(found[BASE]):.3f}" for name in names)
    return f"nats more than where the base reads itself: {said}"


def tell(study: Study, found: Grades, kept: Mapping[str, int]) -> None:
    kinds: Sequence[str] = [*found[BASE]]
    study.table(
        f"small models: {REST} tokens after {PROMPT}",
        ("side", *(f"{kind}: nats" for kind in kinds), f"{COPYING}: right"),
        [(name, *(of[kind][0] for kind in kinds), of[COPYING][1]) for name, of in found.items()],
    )
    told = ", ".join(f"{name} {n}" for name, n in kept.items())
    study.note(f"of {PROMPT} tokens of a prompt the small base reads as many in the time of: {told}")
    study.note("copying is synthetic: random tokens that come again")
