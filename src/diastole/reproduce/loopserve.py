"""LoopServe on SmolLM2-135M: lines of prompts that are chosen online, and output that says what matters to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

import numpy as np

from diastole.bench.longcontext.recall import ASK, context
from diastole.bench.longtext import Corpus
from diastole.bench.quality import log_softmax
from diastole.bench.rig import CHUNK, Rig
from diastole.bench.snapkv import snapkv
from diastole.nn.inside import Inside
from diastole.nn.lines import Lines, Partly
from diastole.reproduce.contexts import Rigs, divergence
from diastole.reproduce.must import at_least, at_most, less_than
from diastole.reproduce.study import Study
from diastole.slots import Selector, View
from diastole.state.pages import PAGE
from diastole.types import Array

PAPER = (
    "LoopServe: An Adaptive Dual-phase LLM Inference Acceleration System for Multi-Turn Dialogues (arXiv 2507.13681)"
)

ALPHA, BUDGET, EVERY = 0.955, 512, 16
TURNS = 5
RECALL = Path("recall")  # where `diastole train recall` puts its model


@dataclass(frozen=True, slots=True)
class Seen:
    """One block in one layer, whose attention was computed along its lines and whole."""

    layer: int
    turn: int
    covered: Array  # (H,) share of the whole attention of all its rows that lies on the lines
    old: Array  # (H,) the same on the lines of the first block that chose any
    kept: Array  # (H,) share of the tokens that are on the lines


@dataclass(eq=False, slots=True)
class Watch:
    """A selector that looks at another's lines, and times them beside whole attention on the same queries."""

    inner: Selector
    turn: int = 0
    seen: list[Seen] = field(default_factory=list)
    seconds: dict[int, list[tuple[float, float, float]]] = field(default_factory=dict)  # choosing, lines, dense
    first: dict[int, Lines] = field(default_factory=dict)  # by layer

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def select(self, view: View, q: Array) -> Partly | None:
        began = perf_counter()
        chosen: Partly | None = self.inner.select(view, q)  # type: ignore[assignment]
        chose = perf_counter() - began
        if chosen is None or not chosen.blocks:
            return chosen
        out, lse, total = np.empty_like(q), np.empty(q.shape[:2], np.float32), np.empty(q.shape[:2], np.float32)
        began = perf_counter()
        chosen.attend(view, q, out, lse)
        middle = perf_counter()
        view.store.attend(view.layer, q, view.b.tables, view.b.starts, view.lo, view.b.hi, view.scale, out, total)
        times = chose, middle - began, perf_counter() - middle
        self.seconds.setdefault(self.turn, []).append(times)
        for lines in chosen.blocks:
            self._note(view, q, out, lse, total, lines)
        return chosen

    def _note(self, view: View, q: Array, out: Array, lse: Array, total: Array, lines: Lines) -> None:
        rows, n = lines.block.rows, int(view.b.hi[lines.block.rows.stop - 1])
        covered = np.exp(lse[rows] - total[rows]).mean(0)
        before = self.first.setdefault(view.layer, lines)
        bands = np.zeros_like(lines.bands)
        bands[..., : before.bands.shape[2]] = before.bands
        replace(before, block=lines.block, bands=bands).attend(view, q, out, lse)
        old = np.exp(lse[rows] - total[rows]).mean(0)
        kept = (lines.counts[0] + PAGE * lines.bands[0].sum(1, dtype=np.int64)) / n
        self.seen.append(Seen(view.layer, self.turn, covered, old, np.minimum(kept, 1)))


@contextmanager
def watching(rig: Rig) -> Iterator[Watch]:
    """While inside, a rig's selector is watched."""
    state = rig.service.state
    watch = Watch(state["inside"].select)
    rig.service.state = {**state, "inside": Inside(watch)}  # type: ignore[arg-type]
    try:
        yield watch
    finally:
        rig.service.state = state


def run(study: Study) -> None:
    n = 2_560 if study.quick else 7_000
    rigs = Rigs(n + 256)
    with rigs(kv="bf16") as dense:
        corpus = Corpus.of(dense.tokenizer, "documentation")
        talk = corpus.cut(n, Random(study.seed))
        stream = dense.open(talk)
        logits = dense.absorb(stream)
        _prompts(study, rigs, talk, logits)
        _speed(study, rigs, dense, talk)
    _output(study, rigs, n)
    _recall(study)


# ---- prompts


def _prompts(study: Study, rigs: Rigs, talk: Sequence[int], dense: Array) -> None:
    """A conversation of five turns of text, absorbed along lines."""
    alphas = (ALPHA,) if study.quick else (0.80, 0.90, ALPHA, 0.99)
    table = []
    for alpha in alphas:
        with rigs(f"loopserve:alpha={alpha}", kv="bf16") as rig, watching(rig) as watch:
            logits = _absorb(study, rig, watch, talk, f"alpha {alpha}")
        covered = np.array([s.covered for s in watch.seen])
        apart = float(divergence(log_softmax(logits[None]), log_softmax(dense[None]))[0])
        chose, lines, whole = np.array(watch.seconds[TURNS - 1]).sum(0)
        good = float((covered >= alpha - 0.03).mean())
        kept = float(np.mean([s.kept for s in watch.seen if s.turn == TURNS - 1]))
        table.append((alpha, good, float(covered.mean()), kept, (chose + lines) / whole, chose / whole, apart))
        if alpha == ALPHA:
            _adaptive(study, watch, good, (chose + lines) / whole, chose / whole)
    study.table(
        "prompts along lines",
        ("alpha", "heads covered", "mean cover", "tokens kept, last turn", "time / dense", "choosing / dense", "KL"),
        table,
    )
    with rigs("loopserve:alpha=1", kv="bf16") as rig, rig.stream(talk) as stream:
        same = float(np.abs(rig.absorb(stream) - dense).max())
    study.check("alpha = 1: difference of logits from dense", same, at_most(1e-4), claim="full attention")


def _absorb(study: Study, rig: Rig, watch: Watch, talk: Sequence[int], what: str) -> Array:
    edges = np.linspace(0, len(talk), TURNS + 1).astype(int)
    with rig.stream(talk) as stream, study.progress(f"a conversation, {what}", len(talk)) as told:
        while stream.left:
            before = stream.done
            watch.turn = min(int(np.searchsorted(edges, before, side="right")) - 1, TURNS - 1)
            logits = rig.piece(stream, CHUNK)
            for _ in range(stream.done - before):
                told()
    return logits


def _adaptive(study: Study, watch: Watch, good: float, ratio: float, choosing: float) -> None:
    study.check(
        f"heads whose lines cover at least {ALPHA} - 0.03 of all their rows' attention",
        good,
        at_least(0.95),
        claim="covers alpha",
        headline=True,
    )
    study.check(
        "attention of the last turn's prompt, choosing included, beside dense",
        ratio,
        at_most(1.0 if study.quick else 0.6),
        baseline=1.0,
        unit="x",
        claim="faster prefill",
        why="at 2,560 tokens little is left out" if study.quick else "choosing reads every key for a sample of rows",
    )
    study.note(f"choosing alone takes {choosing:.2f} of dense attention's time; rounds are one per layer and chunk")
    last = [s for s in watch.seen if s.turn == TURNS - 1]
    old, new = float(np.mean([s.old for s in last])), float(np.mean([s.covered for s in last]))
    study.check(
        "cover in the last turn by the first block's lines, beside its own",
        old,
        less_than(new, "lines chosen online"),
        baseline=new,
        claim="which lines matter differs by head, input and turn",
    )
    rows: list[tuple[float | str, ...]] = []
    for layer in sorted({s.layer for s in watch.seen}):
        own = [s for s in watch.seen if s.layer == layer]
        turns = [[s.kept.mean() for s in own if s.turn == t] for t in range(TURNS)]
        spread = np.mean([s.kept for s in own], axis=0)
        rows.append(
            (layer, *(f"{np.mean(t):.3f}" if t else "-" for t in turns), float(spread.min()), float(spread.max()))
        )
    study.table(
        "share of tokens on lines", ("layer", *(f"turn {t + 1}" for t in range(TURNS)), "least head", "most"), rows
    )


# ---- output


@dataclass(frozen=True, slots=True)
class Quote:
    """A document in which a passage is asked for, and the answer that quotes it."""

    where: str
    prompt: list[int]
    answer: list[int]


def _quotes(corpus: Corpus, n: int, count: int, seed: int) -> list[Quote]:
    rng, made = Random(f"quotes {seed}"), []
    for i in range(count):
        text = corpus.cut(n - 80, rng)
        at = rng.randrange(n // 8, n // 2)
        passage = text[at : at + 96]
        asked = corpus.encode("\n\nRepeat the passage that begins so: ") + passage[:8] + corpus.encode("\n\n")
        place = {"begin": 0, "middle": (n - 80) * 3 // 4, "end": n - 80}
        where = tuple(place)[i % 3]
        prompt = text[: place[where]] + asked + text[place[where] :] + corpus.encode("\n\nThe passage is: ")
        made.append(Quote(where, prompt, passage[:81]))
    return made


def _output(study: Study, rigs: Rigs, n: int) -> None:
    n, count = (1_800, 2) if study.quick else (4_000, 9)
    loop = "loopserve:alpha=1,budget={},reselect_every={}"
    stacks = {
        "loopserve": loop.format(BUDGET, EVERY),
        "sink and window": f"sink-window:budget={BUDGET},dense_layers=0",
        "snapkv": "",
        "everything, chosen": loop.format(8_192, EVERY) + ",dense_below=1",
    }
    if not study.quick:
        stacks |= {f"loopserve, {b} tokens": loop.format(b, EVERY) for b in (256, 1024)}
        stacks |= {f"loopserve, every {e}": loop.format(BUDGET, e) for e in (8, 64)}
        stacks |= {"loopserve, both halves": f"loopserve:alpha={ALPHA},budget={BUDGET},reselect_every={EVERY}"}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in stacks}
    with rigs() as dense:
        quotes = _quotes(Corpus.of(dense.tokenizer), n, count, study.seed)
        exact = [_read(dense, quote) for quote in quotes]
    with study.progress("stacks", len(stacks) * count) as told:
        for name, use in stacks.items():
            with _stack(rigs, use) as rig:
                for quote, right in zip(quotes, exact, strict=True):
                    late = divergence(_read(rig, quote), right)[EVERY:]  # before, all is attended to
                    found[name].setdefault(quote.where, []).append(float(late.mean()))
                    told()
    places = list(found["loopserve"])
    study.table(
        f"divergence from dense after {EVERY} tokens of output, by where the question stands, nats",
        ("stack", *places),
        [(name, *(float(np.mean(by[p])) for p in places)) for name, by in found.items()],
    )
    early = {
        name: float(np.mean([x for p in ("begin", "middle") for x in by.get(p, ())])) for name, by in found.items()
    }
    for rival in ("snapkv", "sink and window"):
        study.check(
            f"divergence with {BUDGET} tokens, question at begin or middle, beside {rival}",
            early["loopserve"],
            less_than(early[rival], rival),
            baseline=early[rival],
            unit="nats",
            claim="better than prompt-chosen sets",
        )
    study.check("a budget for everything: divergence", early["everything, chosen"], at_most(1e-4), unit="nats")


@contextmanager
def _stack(rigs: Rigs, use: str) -> Iterator[Rig]:
    """A rig with these techniques; "": with SnapKV, which is none."""
    with rigs(use or "sink-window") as rig:
        if use:
            yield rig
            return
        with snapkv(rig, BUDGET):
            yield rig


def _read(rig: Rig, quote: Quote) -> Array:
    """Log probabilities (steps, V) before each token of the answer but the first."""
    with rig.stream(quote.prompt) as stream:
        rig.absorb(stream)
        return log_softmax(np.stack([rig.step({stream: token})[0] for token in quote.answer[:-1]]))


def _speed(study: Study, rigs: Rigs, dense: Rig, talk: Sequence[int]) -> None:
    with rigs(f"loopserve:alpha=1,budget={BUDGET},reselect_every={EVERY}") as sparse:
        streams = {}
        for name, rig in (("dense", dense), ("loopserve", sparse)):
            streams[name] = rig, rig.open(talk)
            rig.absorb(streams[name][1])

        def decode(name: str) -> None:
            rig, stream = streams[name]
            for token in talk[:EVERY]:  # one choice in each turn
                rig.step({stream: token})

        times = study.interleaved({name: partial(decode, name) for name in streams}, 3 if study.quick else 6, 2)
    study.check(
        f"decode steps at {len(talk)} tokens with {BUDGET}",
        times.speedup("loopserve", over="dense"),
        at_least(1.0 if study.quick else 1.4),
        unit="x",
        claim="faster decoding",
        why="at 2,560 tokens attention is a small part of a step" if study.quick else "",
    )


# ---- a model whose every answer stands in its context


def _recall(study: Study) -> None:
    """Many questions in a row: each is about another pair, so what the last ones asked for does not tell the next."""
    if not (RECALL / "config.json").is_file():
        study.note("the recall model is not trained yet (diastole train recall): its accuracy is not judged here")
        return
    n, budget = 1_600, 200
    loop = f"loopserve:alpha=1,budget={budget},reselect_every={EVERY},dense_below=256"
    right: dict[str, float] = {}
    before: dict[str, float] = {}  # the first choice by outputs
    for name, use in {"dense": (), "loopserve": (loop,), "snapkv": ("sink-window",)}.items():
        with ExitStack() as stack:
            rig = stack.enter_context(Rig(str(RECALL), use, kv="rows", context=n + 400))
            if name == "snapkv":
                stack.enter_context(snapkv(rig, budget))
            asked = [_asked(rig, n, seed) for seed in range(2 if study.quick else 8)]
        before[name], right[name] = (
            float(np.mean([hit for hits in part for hit in hits])) for part in zip(*asked, strict=True)
        )
    study.table("recall, 12.5 % of the context", ("stack", "right"), list(right.items()))
    study.check(
        "recall of fresh keys, beside dense",
        right["loopserve"],
        at_least(0.95 * right["dense"], "0.95 x dense"),
        baseline=right["dense"],
        why="every question asks for a pair that no output before it has looked at",
    )
    study.check(
        "the same beside a set chosen by the prompt",
        right["loopserve"],
        at_least(right["snapkv"], "snapkv"),
        why=f"with its own choice by the prompt {before['loopserve']:.0%} are right, with those by outputs "
        f"{right['loopserve']:.0%}",
        fallback=True,
    )


def _asked(rig: Rig, n: int, seed: int) -> tuple[list[bool], list[bool]]:
    """Which answers are right, before the first choice by outputs and behind it."""
    ids, at = context(n, np.random.default_rng([seed, 1]))
    pick = Random(seed)
    hits: tuple[list[bool], list[bool]] = [], []
    with rig.stream(ids.tolist()) as stream:
        rig.absorb(stream)
        for i, key in enumerate(pick.sample(at.tolist(), 16)):
            rig.step({stream: ASK})
            logits = rig.step({stream: int(ids[key])})[0]
            rig.step({stream: int(ids[key + 1])})
            hits[3 * i >= EVERY].append(int(logits.argmax()) == ids[key + 1])
    return hits
