"""KV Prediction: on SmolLM2-135M with maps by regression, and on small models trained with the paper's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import exp
from typing import NamedTuple

import numpy as np

from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.heads.kv_maps import Auxiliary
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes.kv_prediction import APART
from diastole.reproduce import kv_prediction_small as small
from diastole.reproduce.aded import facts_of
from diastole.reproduce.kv_prediction_prompts import Side, Text, as_fast, divergence, losses, medians, scattered
from diastole.reproduce.must import at_most, between, equal_to, less_than
from diastole.reproduce.study import Study
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.types import Array, Batch
from diastole.weights.calibration import Calibration, find

PAPER = (
    "KV Prediction for Improved Time to First Token: an auxiliary and linear maps read the prompt (arXiv 2410.08391)"
)

NAME = "kv-prediction"
REST = 64  # tokens that follow a prompt
BASE, TOLD, PRUNED, DROPPED = "base", "KV prediction", "its layers alone", "base, some tokens"


class Size(NamedTuple):
    """How much is measured."""

    lengths: Sequence[int]  # of prompts, in tokens
    texts: int  # of each length
    rounds: int


FULL = Size((256, 1024, 2048, 4096), 8, 5)
QUICK = Size((256, 512), 1, 1)


@dataclass(slots=True)
class Found:
    """By length of prompts."""

    seconds: dict[int, dict[str, float]] = field(default_factory=dict)  # until the first answer, by side
    nats: dict[int, dict[str, float]] = field(default_factory=dict)  # per token of what follows, by side
    divergence: dict[int, float] = field(default_factory=dict)  # of the first answer, nats
    kept: dict[int, int] = field(default_factory=dict)  # tokens that the base reads in the time of KV prediction


def run(study: Study, maps: str = "") -> None:
    """maps: file; empty: beside the model, or Diastole's own."""
    size = QUICK if study.quick else FULL
    with LLM(max_streams=8) as plain:
        found = find(NAME, facts_of(plain), maps, NAME)
        use = f"{NAME}:min_prompt=1" + (f",maps={maps}" if maps else "")
        different = exact(study, plain, use)
    study.check(
        "greedy texts of requests that do not allow it, beside others that do, that differ",
        different,
        equal_to(0),
        claim="only who allows it is approximated",
    )
    context = max(size.lengths) + REST + 1
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(context=context))
        with_it = stack.enter_context(Rig(use=(use,), context=context))
        judge(study, measured(study, rig, with_it, found.tensors["layers"].tolist(), size))
    offs(study, found)
    small.run(study)


# ---- measuring


def exact(study: Study, plain: LLM, use: str) -> int:
    """Prompts that are read exactly while others are told of the same ones, which were cached before or are not."""
    prompts = [plain.voice.prompt(f"{i}. Tell me about rivers. " + "They flow to the sea. " * 30) for i in range(4)]
    said = [
        SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, allow_approximate_prefill=allow)
        for allow in (True, False)
    ]
    wishes = [(ids, params) for ids in prompts for params in said]
    with study.progress("beside others", 1) as told, LLM(use=(use,), max_streams=8) as llm:
        ours = [done.ids for turn in range(2) for done in llm.generate_each(wishes)[1::2]]
        told()
    theirs = [done.ids for done in plain.generate_each([(ids, said[1]) for ids in prompts])]
    return sum(a != b for a, b in zip(ours, theirs * 2, strict=True))


def measured(study: Study, rig: Rig, with_it: Rig, layers: Sequence[int], size: Size) -> Found:
    ids = np.array(Corpus.of(rig.tokenizer).ids, np.int32)
    ids, rng = ids[int(len(ids) * (1 - APART)) :], np.random.default_rng(study.seed)
    found, told = Found(), Side(with_it, True)
    for n in size.lengths:
        starts = rng.integers(0, len(ids) - n - REST, size.texts).tolist()
        texts = [Text(ids[at : at + n], ids[at + n : at + n + REST]) for at in starts]
        _time(study, found, rig, told, texts[0].prompt, size.rounds)
        sides = {BASE: Side(rig), TOLD: told, DROPPED: Side(rig, cut=scattered(found.kept[n], study.seed))}
        with study.progress(f"what follows {n} tokens", len(texts)) as done:
            grades: dict[str, list[float]] = {}
            apart = []
            for text in texts:
                logits = {name: side.logits(text) for name, side in sides.items()}
                logits[PRUNED] = alone(rig, layers, text)
                apart.append(divergence(logits[BASE][0], logits[TOLD][0]))
                for name, x in logits.items():
                    grades.setdefault(name, []).append(float(losses(x, text.rest).mean()))
                done()
        found.nats[n] = {name: float(np.mean(x)) for name, x in grades.items()}
        found.divergence[n] = float(np.mean(apart))
    return found


def _time(study: Study, found: Found, rig: Rig, told: Side, prompt: Array, rounds: int) -> None:
    n, base = len(prompt), Side(rig)
    lengths = [max(int(n * f), 8) for f in (0.1, 0.25, 0.4, 0.6)]
    turns = {BASE: partial(base.first, prompt), TOLD: partial(told.first, prompt)}
    turns |= {f"base, {k}": partial(base.first, prompt[:k]) for k in lengths}
    times = study.interleaved(turns, rounds, what=f"first answers to {n} tokens")
    found.seconds[n] = {name: times.median(name) for name in (BASE, TOLD)}
    some = medians(times, "base, ", lengths) | {n: times.median(BASE)}
    found.kept[n] = as_fast(times.median(TOLD), some)


def alone(rig: Rig, layers: Sequence[int], text: Text) -> Array:
    """Logits (m, V) of what follows, by some layers of the model as a model of its own."""
    decoder, ids = rig.decoder, np.concatenate([text.prompt, text.rest[:-1]]).astype(np.int32)
    auxiliary, n, pages = Auxiliary(decoder, layers), len(ids), -(-len(ids) // PAGE)
    store = PagedKV("bf16")
    store.alloc(auxiliary.spec, pages, decoder.ops)
    pos, lo = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    tables, starts = np.arange(pages, dtype=np.int32)[None], np.array([0, n], np.int32)
    batch = Batch((), (), ids, pos, starts, pos.astype(np.int64), tables, lo, pos + 1, lo[:0])
    return decoder.logits(auxiliary.states(batch, store)[len(text.prompt) - 1 :].copy()).copy()


# ---- judging


def judge(study: Study, found: Found) -> None:
    over = {name: float(np.mean([by[name] for by in found.nats.values()])) for name in (BASE, TOLD, PRUNED, DROPPED)}
    study.check(
        "perplexity of what follows a prompt, KV prediction",
        exp(over[TOLD]),
        between(exp(over[BASE]), exp(over[PRUNED])),
        baseline=exp(over[BASE]),
        claim="between the base and its auxiliary",
        why="the auxiliary's layers were never trained to do without those between them: they know little",
    )
    study.check(
        "nats per token, beside the base with as many tokens of the prompt as it reads in that time",
        over[TOLD],
        less_than(over[DROPPED], DROPPED),
        baseline=over[DROPPED],
        claim="more accurate than token pruning at equal TTFT, after training",
        why="maps alone cannot bring back what the layers that are skipped would have added",
    )
    longest = max(found.seconds)
    study.check(
        f"first answer to {longest} tokens, beside the base",
        found.seconds[longest][TOLD] / found.seconds[longest][BASE],
        at_most(0.45),
        unit="x",
        claim="follows the auxiliary's FLOPs",
    )
    study.table(
        f"SmolLM2-135M: {REST} tokens of documentation after a prompt",
        ("prompt", "ms, base", "ms, KV prediction", "tokens as fast", "nats, base", "nats, KV prediction",
         "nats, its layers alone", "nats, some tokens", "KL of the first"),
        [
            (n, *(1e3 * found.seconds[n][name] for name in (BASE, TOLD)), found.kept[n],
             *(found.nats[n][name] for name in (BASE, TOLD, PRUNED, DROPPED)), found.divergence[n])
            for n in found.seconds
        ],
    )  # fmt: skip
    for name in (BASE, TOLD):
        study.curve(
            "first answer", [*found.seconds], [by[name] for by in found.seconds.values()],
            label=name, xlabel="tokens of the prompt", ylabel="seconds",
        )  # fmt: skip


def offs(study: Study, found: Calibration) -> None:
    """What the recipe said of each layer's maps."""
    said: Mapping[str, object] = found.about
    errors = said.get("errors")
    study.note("maps on SmolLM2 are ridge regressions, and the auxiliary is not trained: the paper trains both")
    if errors is not None:
        study.note(f"how far maps are off by layer, 1: no better than the mean: {errors}")
