"""LServe beside dense attention: what each part costs in quality, what it saves in time, and whether the two multiply.

The ladder: dense; static only (heads that stream, as the calibration says, at random, and all of them); dynamic only
(pages chosen by bounds of 64 tokens, and of 16); both. All on one model, one machine, one path of code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from diastole.bench.longcontext.study import Kept, mean
from diastole.bench.longcontext.tasks import Continuation, Needle
from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.reproduce.lserve_far import far
from diastole.reproduce.lserve_parts import Clocked, Covered, clocked
from diastole.reproduce.must import at_least, at_most, between, equal_to, less_than
from diastole.reproduce.study import Study
from diastole.slots import Facts
from diastole.state.pages import PAGE
from diastole.types import Stream
from diastole.weights.calibration import Calibration, about

PAPER = "LServe: half of the heads stream, the others pick pages by bounds of their keys while decoding"

MODEL = "smollm2-135m"
STEPS = 16  # decoded tokens of one timed turn


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a run."""

    lengths: tuple[int, ...]  # of contexts whose continuation is judged
    judged: int  # tokens of each continuation
    long: int  # tokens at which time is taken
    short: int  # to which attention's time is compared
    rounds: int
    budget: int
    local: int  # latest tokens that streaming heads see in a prompt

    @property
    def static(self) -> str:
        return f"sink=64,prefill_local={self.local},decode_local=128"

    @classmethod
    def of(cls, quick: bool) -> Sizes:
        if quick:
            return cls((1_500,), 64, 2_048, 1_024, 3, 512, 256)
        return cls((2_000, 4_000, 7_000), 256, 7_040, 2_048, 7, 1_024, 1_024)


def run(study: Study) -> None:
    size = Sizes.of(study.quick)
    study.note(
        f"scaled to {size.long:,} tokens: pages of 64 (the paper's) with bounds for 16, sink 64, window of a prompt "
        f"{size.local} and of decoding 128, budget {size.budget} tokens; page 0 and the last two are always in"
    )
    study.note("heads by the mass that they give outside sink and window on pass-key rows, not by trained gates")
    with tempfile.TemporaryDirectory() as folder:
        ladder = _ladder(size, Path(folder), study.seed)
        quality(study, size, ladder)
        coverage(study, size)
        speed(study, size, ladder)
        far(study, f"{size.static},budget={size.budget}", size.rounds, Path(folder))


def _ladder(size: Sizes, folder: Path, seed: int) -> dict[str, tuple[str, ...]]:
    """What is switched on, by the name of a rung."""
    with Rig(MODEL, context=256) as rig:
        facts = _facts(rig)
    random = folder / "random.safetensors"
    gates = np.random.default_rng(seed).random((facts.layers, facts.kv_heads)).astype(np.float32)
    Calibration({"gates": gates}, about("lserve", facts)).write(random)
    all_of_it = f"budget={_up(size.long + 1_024)}"  # nothing is left out while decoding
    dynamic = f"lserve:sparsity=0,budget={size.budget}"
    static = f"lserve:{size.static}"
    return {
        "dense": (),
        "static": (f"{static},{all_of_it},sparsity=0.5",),
        "static, random heads": (f"{static},{all_of_it},sparsity=0.5,pattern={random}",),
        "static, all heads": (f"{static},{all_of_it},sparsity=1",),
        "dynamic": (dynamic,),
        "dynamic, bounds of 64": (f"{dynamic},logical_page=64",),
        "dynamic, each step": (f"{dynamic},refresh=1",),
        "both": (f"{static},sparsity=0.5,budget={size.budget}",),
        "both, two pools": (f"{static},sparsity=0.5,budget={size.budget},pool=bf16",),
    }


def _facts(rig: Rig) -> Facts:
    from diastole.assets import resolve
    from diastole.weights import open_checkpoint

    model: Any = rig.service.model
    facts: Facts = model.facts(open_checkpoint(resolve(MODEL)))
    return facts


def _up(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE


# ---- quality


def quality(study: Study, size: Sizes, ladder: dict[str, tuple[str, ...]]) -> None:
    """Continuations of real text and needles, teacher-forced: every rung sees the same cases."""
    context = max(size.lengths) + size.judged + 128
    with Rig(MODEL, context=context, streams=6) as dense:
        corpus = Corpus.of(dense.tokenizer)
        texts = {n: Continuation(size.judged).cases(corpus, n, 1, study.seed) for n in size.lengths}
        needles = {n: Needle().cases(corpus, n, 1, study.seed) for n in size.lengths}
        kept = {n: [Kept.of(dense, c) for c in (*texts[n], *needles[n])] for n in size.lengths}
    found: dict[str, dict[int, tuple[float, float, float, float]]] = {}
    with study.progress("quality", len(ladder) * len(size.lengths)) as step:
        for name, use in ladder.items():
            with Rig(MODEL, use, context=context, streams=6) as rig:
                found[name] = {}
                for n in size.lengths:
                    text, told = (k.judge(rig) for k in kept[n])
                    found[name][n] = (
                        mean(text, "perplexity"),
                        mean(text, "divergence"),
                        mean(told, "exact"),
                        mean(told, "divergence"),
                    )
                    step()
    study.table(
        "quality",
        ["rung", "tokens", "perplexity", "KL of text", "needles found", "KL of needles"],
        [[name, n, *row] for name, by in found.items() for n, row in by.items()],
    )

    def divergence(name: str) -> float:
        return fmean(row[i] for row in found[name].values() for i in (1, 3))

    learned, random, every = (divergence(f"static{x}") for x in ("", ", random heads", ", all heads"))
    study.check(
        "KL with the calibrated half of the heads streaming",
        learned,
        less_than(random, "a random half"),
        baseline=random,
        unit="nats",
        claim="trained gates beat chance",
    )
    study.check("KL with a random half streaming", random, less_than(every, "all heads"), baseline=every, unit="nats")
    often = fmean(row[0] for row in found["dynamic, each step"].values())
    seldom = fmean(row[0] for row in found["dynamic"].values())
    study.check(
        "perplexity lost by choosing every 4 steps only",
        100 * (seldom / often - 1),
        less_than(1),
        unit="%",
        claim="no loss up to 4",
    )
    lost = 100 * (fmean(r[0] for r in found["both"].values()) / fmean(r[0] for r in found["dense"].values()) - 1)
    study.check(
        "perplexity lost by both",
        lost,
        at_most(5),
        unit="%",
        claim="accuracy maintained",
        why="a small model has few heads to spare: see what the static half alone loses in the table",
    )
    whole, both, static = (fmean(r[2] for r in found[name].values()) for name in ("dense", "both", "static"))
    study.check(
        "share of needles lost by both",
        whole - both,
        at_most(0.1),
        baseline=1 - whole,
        claim="needles held",
        why="bounds of 64 tokens' keys are loose here: of few pages they choose others than those with the most mass",
    )
    study.note(f"share of needles lost by static alone: {whole - static:.2f}")


def coverage(study: Study, size: Sizes) -> None:
    """Share of the true attention mass in the pages that bounds of 64, of 16 in pages of 64, and of 16 choose."""
    n = max(size.lengths)
    with Rig(MODEL, context=n + 64) as rig:
        ids = Corpus.of(rig.tokenizer).ids[: n + 8]
        with rig.stream(ids[:n]) as stream:
            rig.absorb(stream)
            probe = Covered(size.budget)
            with rig.watched(probe):
                for token in ids[n:]:
                    rig.step({stream: token})
    flat64, two, flat16 = (fmean(probe.shares[name]) for name in ("flat 64", "64 by 16", "flat 16"))
    study.table(f"mass at {n:,} tokens in {size.budget}", ["pages", "share"], list(zip(
        ("flat 64", "64 by bounds of 16", "flat 16", "the best pages of 64"),
        (flat64, two, flat16, fmean(probe.shares["oracle 64"])), strict=True,
    )))  # fmt: skip
    study.check(
        "mass in pages of 64 by bounds of 16",
        two,
        at_least(flat64 + 0.02, "bounds of 64, + 0.02"),
        baseline=flat64,
        claim="two levels as good as small pages",
        why="bounds of 64 cover nearly as much here: the gap that two levels could close is smaller than 0.02",
    )
    study.check("the same beside them", two, at_least(flat64, "bounds of 64"), baseline=flat64, fallback=True)
    study.check(
        "mass in pages of 64 by bounds of 16, beside small pages",
        two,
        at_least(flat16 - 0.02, "pages of 16, - 0.02"),
        baseline=flat16,
        why="at equal tokens four times as many small pages are chosen, and mass lies scattered in this model",
    )
    share = 0.9 * fmean(probe.shares["oracle 64"])
    study.check("the same beside the best pages", two, at_least(share, "0.9 x the best pages of 64"), fallback=True)


# ---- speed


def speed(study: Study, size: Sizes, ladder: dict[str, tuple[str, ...]]) -> None:
    """Steps and prompts of dense attention, each part and both, in turns."""
    names = ("dense", "static", "dynamic", "both", "both, two pools")
    with ExitStack() as stack:
        rigs = {n: stack.enter_context(_rig(size, ladder[n])) for n in names}
        ids = Corpus.of(rigs["dense"].tokenizer).ids[: size.long]
        trunks = {}
        for n in names:
            trunks[n] = rigs[n].open(ids)
            rigs[n].absorb(trunks[n])
        decode = study.interleaved(
            {n: partial(_decode, rigs[n], trunks[n]) for n in names}, size.rounds, what="decoding"
        )
        prompts = study.interleaved(
            {n: partial(_read, rigs[n], ids) for n in ("dense", "static")}, 1 if study.quick else 3, 0, "reading"
        )
        parts = {n: _parts(rigs[n], trunks[n]) for n in names[:4]}
        held = [_held(rigs["both, two pools"], ids[:n]) for n in (size.short, size.long)]
        short = {}
        for n in ("dense", "both"):
            with rigs[n].stream(ids[: size.short]) as stream:
                rigs[n].absorb(stream)
                short[n] = _parts(rigs[n], stream)
    step = {n: 1e3 * decode.median(n) / STEPS for n in names}
    study.table(
        f"a decode step at {size.long:,} tokens, in ms",
        ["rung", "step", "selection", "attention", "rest"],
        [[n, step[n], p.select, p.attend, step[n] - p.select - p.attend] for n, p in parts.items()],
    )
    for name in ("static", "dynamic"):
        study.note(f"decoding with {name} alone: {float(decode.speedup(name, 'dense')):.2f}x of dense")
    study.note(f"reading with static: {float(prompts.speedup('static', 'dense')):.2f}x of dense")
    attention = parts["dense"].attend / step["dense"]
    study.note(
        f"attention is {attention:.0%} of a dense step: nothing there can bring more than {1 / (1 - attention):.2f}x"
    )
    both = decode.speedup("both, two pools", over="dense")
    study.note(f"with one pool: {float(decode.speedup('both', 'dense')):.2f}x of dense")
    study.check(
        f"decoding at {size.long:,} tokens", both, at_least(1.5), unit="x", claim="1.3x to 2.1x", headline=True,
        why="a quick run is too short for it" if study.quick else "",
    )  # fmt: skip
    if study.quick:
        study.check("the same, quickly", both, at_least(1.0), unit="x", fallback=True)
    product = float(decode.speedup("static", "dense")) * float(decode.speedup("dynamic", "dense"))
    ideal = 0.8 * product
    study.check(
        "both beside the product of static and dynamic", both, at_least(ideal, "0.8 x product"), baseline=product,
        unit="x", claim="the two are compatible",
        why="both shrink the same attention, while the rest of a step stays: their ratios cannot multiply",
    )  # fmt: skip
    inner = {n: parts["dense"].attend / (p.attend + p.select) for n, p in parts.items()}
    study.check(
        "the same of attention with selection", inner["both"],
        at_least(0.8 * max(inner["static"], inner["dynamic"]), "0.8 x the better one"), unit="x", fallback=True,
    )  # fmt: skip
    study.check(
        f"attention's time at {size.long:,} over {size.short:,} tokens",
        parts["both"].attend / short["both"].attend,
        between(0.9, 1.1),
        baseline=parts["dense"].attend / short["dense"].attend,
        unit="x",
        claim="constant",
    )
    study.check(
        f"bytes that streaming heads hold at {size.long:,} over {size.short:,} tokens",
        held[1][1] / held[0][1],
        equal_to(1),
        unit="x",
        claim="constant",
    )
    one = rigs["both"].bytes_per_token * size.long
    study.note(
        f"a stream of {size.long:,} tokens holds {sum(held[1]) / 1e6:.1f} MB, {held[1][1] / 1e6:.1f} of them of "
        f"streaming heads, and {one / 1e6:.1f} MB with one pool"
    )


def _held(rig: Rig, ids: Sequence[int]) -> tuple[int, int]:
    """Bytes of a stream of these tokens: of heads that keep everything, and of streaming ones."""
    with rig.stream(ids) as stream:
        rig.absorb(stream)
        found: tuple[int, int] = rig.service.state["kv"].held(stream.leases["kv"])
    return found


@contextmanager
def _rig(size: Sizes, use: tuple[str, ...]) -> Iterator[Rig]:
    with Rig(MODEL, use, weights="q4", context=size.long + 64, streams=2) as rig:
        yield rig


def _decode(rig: Rig, trunk: Stream) -> None:
    """``STEPS`` tokens after a stream, which stays as it is."""
    fork = rig.fork(trunk)
    for token in range(STEPS):
        rig.step({fork: 100 + token})
    rig.close(fork)


def _read(rig: Rig, ids: Sequence[int]) -> None:
    with rig.stream(ids) as stream:
        rig.absorb(stream)


def _parts(rig: Rig, trunk: Stream) -> Clocked:
    """Medians of a step's parts, over turns of ``STEPS``."""
    turns = []
    for _ in range(5):
        with clocked(rig) as spent:
            _decode(rig, trunk)
        turns.append(spent.per_step())
    return Clocked(1, median(t.select for t in turns), median(t.attend for t in turns), turns[-1].seen)
