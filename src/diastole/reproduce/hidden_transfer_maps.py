"""What maps of hidden transfer learn in equally many steps of the same text: beside baselines, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.bench.rig import Rig
from diastole.nn.decoder import Decoder
from diastole.recipes import hidden_transfer as recipe
from diastole.recipes.hidden_transfer import LAST, LENGTH, MEDUSA, SOURCES, TRANSFER, Layers, Maps, Reader
from diastole.recipes.own_text import Texts
from diastole.reproduce.must import more_than
from diastole.reproduce.study import Study
from diastole.spec.crossed import likeliest, tree
from diastole.types import Array, Draft

NAMES = {TRANSFER: "hidden transfer", LAST: "transfer at the last layer", MEDUSA: "Medusa-1"}
WIDE, TOPK, NODES = 5, 4, 8  # likeliest tokens that count as guessed; of those, how many a tree has; its nodes, at most


class Size(NamedTuple):
    """How much is learned."""

    steps: int  # of each training
    held: int  # conversations to judge by
    sweep: Sequence[int]  # layers


FULL = Size(120, 40, (2, 8, 14, 20, 26, 29))
QUICK = Size(8, 6, (12, 20, 29))


@dataclass(frozen=True, slots=True)
class Grade:
    """How well one student does in an exam of C conversations."""

    right: Array  # (C, N, 2): the share of tokens that are its likeliest, and among its five, by offset
    kept: Array  # (NODES,): tokens that a draft of so many nodes brings

    @property
    def shares(self) -> Array:
        """(N, 2)."""
        found: Array = self.right.mean(0)
        return found

    @property
    def likeliest(self) -> Array:
        """(C,): the share that is its likeliest, of all offsets."""
        found: Array = self.right[..., 0].mean(1)
        return found


class Judging(Layers):
    """Layers whose last word is not rounded: in half precision the likeliest tokens often are equally likely."""

    def __init__(self, decoder: Decoder, first: int, vocab: Array) -> None:
        super().__init__(decoder, first, vocab)
        self.exact = self.head.float()

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states.contiguous(), self.exact)


class Exam:
    """Conversations that nobody learned from, for students whose maps begin after ``layers``."""

    def __init__(self, rig: Rig, texts: Texts, vocab: Array, layers: Sequence[int], seed: int) -> None:
        reader, rng = Reader(rig, vocab, layers), np.random.default_rng(seed)
        self.above = Judging(rig.decoder, layers[0], vocab)
        self.passages = []
        for ids, prompt in texts.each():
            ids = np.ascontiguousarray(ids[:LENGTH], np.int32)
            places = rng.permutation(np.arange(prompt - 1, len(ids) - 1 - len(layers)))[:SOURCES]
            if len(places):
                self.passages.append(reader.passage(ids, np.sort(places)))

    def grade(self, student: Maps) -> Grade:
        right, kept = [], []
        for p in self.passages:
            with torch.no_grad():
                logits = student(p, self.above).numpy()
            best, odds = likeliest(logits.reshape(-1, logits.shape[-1]), WIDE)
            best, odds = (x.reshape(*logits.shape[:2], -1) for x in (best, odds))
            hits = best == p.said.numpy()[..., None]
            right.append(np.stack([hits[..., 0].mean(0), hits.any(-1).mean(0)], -1))
            for own, chances, said in zip(best[..., :TOPK], odds[..., :TOPK], p.said.tolist(), strict=True):
                kept.append(brought(tree(own, chances, NODES), said))
        return Grade(np.stack(right), np.mean(kept, 0))


def brought(draft: Draft, said: Sequence[int]) -> list[int]:
    """How many tokens the first 1, 2, .. NODES guesses of a draft bring where this is said."""
    assert draft.parents is not None
    depths: list[int] = []  # of the path that ends at each node; -1 where it is wrong
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        above = depths[parent] if parent >= 0 else 0
        depths.append(above + 1 if above >= 0 and token == said[above] else -1)
    best = np.maximum.accumulate([0, *depths])[1:].tolist()
    return [*best, *best[-1:] * (NODES - len(best))]


def revived(name: str, tensors: Mapping[str, Array]) -> Maps:
    """As it was when its training ended."""
    found = Maps(name, tensors["layers"].tolist(), tensors["maps"].shape[1])
    with torch.no_grad():
        found.weight.copy_(torch.from_numpy(tensors["maps"].astype(np.float32)))
        if "bias" in tensors:
            found.bias.copy_(torch.from_numpy(tensors["bias"]))
    return found


def split(texts: Texts, held: int) -> tuple[Texts, Texts]:
    """Conversations to learn from; and of the last ``held`` those that begin with another request than all of these."""
    found = [*texts.each()]
    lessons, rest = found[:-held], found[-held:]
    asked = {ids[:prompt].tobytes() for ids, prompt in lessons}
    rest = [(ids, prompt) for ids, prompt in rest if ids[:prompt].tobytes() not in asked]
    return _texts(lessons, texts.fingerprint), _texts(rest, texts.fingerprint)


def _texts(found: Sequence[tuple[Array, int]], fingerprint: str) -> Texts:
    starts = np.cumsum([0, *(len(ids) for ids, _ in found)])
    return Texts(np.concatenate([ids for ids, _ in found]), starts, np.array([n for _, n in found]), fingerprint)


# ---- the study


def learn(study: Study, rig: Rig, own: Texts, layers: Sequence[int], size: Size) -> None:
    """Train and judge, all in equally many steps of the same text.

    Args:
        layers: (N,), rising: after these begin the maps that are compared with the baselines; those of the sweep begin
            after one layer, all N.
    """
    lessons, exam = split(own, size.held)
    steps, depth = size.steps, len(rig.decoder.blocks)
    rivals = _grades(study, rig, lessons, exam, layers, steps, True)
    swept = {t: _grades(study, rig, lessons, exam, [t] * len(layers), steps, False)[TRANSFER] for t in size.sweep}
    if study.quick:
        study.note(f"{steps} steps teach too little to judge by: what maps foresee is judged by the full run")
    else:
        _beside(study, rivals, layers)
        _by_layer(study, swept)
    _draw(study, rivals, {**swept, depth: rivals[LAST]})
    named = [(NAMES[name], "+".join(map(str, layers)) if name == TRANSFER else depth, g) for name, g in rivals.items()]
    named += [(NAMES[TRANSFER], t, grade) for t, grade in swept.items()]
    offsets = [f"+{n}" for n in range(1, len(layers) + 1)]
    study.table(
        f"tokens foreseen, % ({steps} steps on {len(lessons.ids):,} tokens; {len(rivals[LAST].right)} others to judge)",
        ("student", "after layer", *(f"top-{k} {n}" for k in (1, WIDE) for n in offsets)),
        [(name, at, *(100 * g.shares).T.ravel().tolist()) for name, at, g in named],
    )
    study.table(
        "tokens that a draft brings, by its nodes",
        ("student", "after layer", *map(str, range(1, NODES + 1))),
        [(name, at, *g.kept.tolist()) for name, at, g in named],
    )


def _grades(
    study: Study, rig: Rig, lessons: Texts, exam: Texts, layers: Sequence[int], steps: int, baselines: bool
) -> dict[str, Grade]:
    plan = recipe.Plan((*layers,), steps, seed=study.seed, baselines=baselines)
    with study.progress(f"training after layers {'+'.join(map(str, layers))}", steps) as told:
        found, _ = recipe.train(rig, lessons, plan, lambda p: told())
    asked = Exam(rig, exam, found[TRANSFER]["vocab"], layers, study.seed)
    return {name: asked.grade(revived(name, tensors)) for name, tensors in found.items()}


def _beside(study: Study, rivals: Mapping[str, Grade], layers: Sequence[int]) -> None:
    ours, theirs = ((100 * rivals[name].shares[:, 0]).tolist() for name in (TRANSFER, MEDUSA))
    for n in range(1, len(layers)):
        study.check(
            f"offset +{n + 1}: likeliest token is right, hidden transfer",
            ours[n],
            more_than(theirs[n], NAMES[MEDUSA]),
            baseline=theirs[n],
            unit="%",
            claim="better than Medusa's heads",
        )
    refined, last = (100 * float(rivals[name].likeliest.mean()) for name in (TRANSFER, LAST))
    study.check(
        "all offsets: likeliest token is right, hidden transfer",
        refined,
        more_than(last, NAMES[LAST]),
        baseline=last,
        unit="%",
        claim="the layers above refine what was transferred",
    )


def _by_layer(study: Study, swept: Mapping[int, Grade]) -> None:
    """Whether there is a best layer between the ends: chosen among several, so it must be ahead by more than chance."""
    bottom, top = min(swept), max(swept)
    best = max((t for t in swept if bottom < t < top), key=lambda t: swept[t].likeliest.mean())
    for end, where in ((bottom, "bottom"), (top, "top")):
        ahead = 100 * (swept[best].likeliest - swept[end].likeliest)
        chance = 2 * float(ahead.std(ddof=1)) / sqrt(len(ahead))
        study.check(
            f"maps after layer {best} beside {end}, the very {where}: more right, of all offsets",
            float(ahead.mean()),
            more_than(chance, "two standard errors"),
            unit="points",
            claim="layers in between are best",
        )


def _draw(study: Study, rivals: Mapping[str, Grade], by_layer: Mapping[int, Grade]) -> None:
    for name, grade in rivals.items():
        study.curve(
            "tokens that a draft brings", [*range(1, NODES + 1)], grade.kept.tolist(),
            label=NAMES[name], xlabel="nodes", ylabel="tokens",
        )  # fmt: skip
    for n in range(rivals[LAST].right.shape[1]):
        study.curve(
            "likeliest token is right, by layer", [*by_layer], [100 * g.shares[n, 0] for g in by_layer.values()],
            label=f"offset +{n + 1}", xlabel="maps after layer", ylabel="%",
        )  # fmt: skip
