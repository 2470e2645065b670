"""TidalDecode on SmolLM2-135M: does what matters to one layer matter to the next, and what comes of believing it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import numpy as np

from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.nn.selection import decoding, weights
from diastole.reproduce.contexts import Rigs, Text, answers, divergence
from diastole.reproduce.must import at_least, at_most, less_than
from diastole.reproduce.study import Study
from diastole.slots import View
from diastole.types import Array, Batch

PAPER = "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention (arXiv 2410.05076)"

FIRST = 2  # layer that chooses first, as in the paper
BUDGET = 512  # tokens, for quality
FAST = 256  # tokens, for speed
SINK, RECENT = 4, 16


@dataclass(eq=False, slots=True)
class Spy:
    """A probe that keeps every layer's logarithms of softmax weights of one decoding stream: (L, H, n)."""

    layers: dict[int, Array] = field(default_factory=dict)

    def need(self, layer: int, b: Batch) -> bool:
        return decoding(b, 1) is not None

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        rows = decoding(view.b, 1)
        assert rows is not None
        self.layers[view.layer] = weights(view, q, rows, q.shape[1], lse)[0]


def run(study: Study) -> None:
    n, follow, texts = (2_000, 40, 1) if study.quick else (7_000, 272, 3)
    rigs = Rigs(n + follow + 64)
    with rigs() as rig:
        corpus = Corpus.of(rig.tokenizer, "code")
        rng = Random(study.seed)
        with study.progress("absorbing texts", texts) as told:
            kept = []
            for _ in range(texts):
                kept.append(Text(rig, corpus.cut(n + follow, rng), follow))
                told()
        with study.progress("dense attention", texts) as told:
            dense = []
            for text in kept:
                dense.append(text.read(rig))
                told()
        overlap, covered, best = _premise(study, rig, kept, 4 if study.quick else 12)
    again = _choose(study, overlap, covered, best)
    _quality(study, kept, dense, again, rigs)
    _correction(study, kept, dense, again, rigs)
    _retrieval(study, n, again)
    _speed(study, kept, again, rigs)


def _premise(study: Study, rig: Rig, texts: Sequence[Text], steps: int) -> tuple[Array, Array, Array]:
    """Under dense attention, means over decode steps: how much of layer l's choice layer c makes too (L, L), how much
    of l's weight c's choice covers (L, L), and how much l's own choice covers (L,)."""
    layers, groups = rig.spec.layers, rig.spec.kv_heads
    overlap, covered, best = np.zeros((layers, layers)), np.zeros((layers, layers)), np.zeros(layers)
    spy = Spy()
    with rig.watched(spy), study.progress("what layers attend to", len(texts) * steps) as told:
        for text in texts:
            stream = text.on(rig)
            for token in text.follow[:steps]:
                rig.step({stream: token})
                logs = np.stack([spy.layers[i] for i in range(layers)])  # (L, H, n)
                chosen = _chosen(logs, groups)
                weights = np.exp(logs).reshape(layers, groups, -1, logs.shape[2])
                overlap += np.einsum("lgn,cgn->lc", chosen, chosen, dtype=np.float32) / (groups * BUDGET)
                found = np.einsum("lgsn,cgn->lc", weights, chosen.astype(np.float32)) / logs.shape[1]
                covered += found
                best += np.diag(found)
                told()
            rig.close(stream)
    count = len(texts) * steps
    return overlap / count, covered / count, best / count


def _chosen(logs: Array, groups: int) -> Array:
    """The tokens that each group's heads choose together: (L, G, n) of 0 and 1."""
    most = logs.reshape(len(logs), groups, -1, logs.shape[2]).max(2).copy()
    most[..., :SINK] = most[..., -RECENT:] = np.inf
    budget = min(BUDGET, most.shape[2])
    least = np.partition(most, -budget, axis=2)[..., -budget, None]
    return (most >= least).astype(np.float32)


def _choose(study: Study, overlap: Array, covered: Array, best: Array) -> int:
    """The layer that chooses again: the one from which most of the weight of the layers behind it is covered."""
    layers = len(best)
    later = {c: float(covered[c + 1 :, c].mean()) for c in range(FIRST + 3, layers - 6)}
    whole = {c: float(np.concatenate([covered[FIRST + 1 : c, FIRST], covered[c + 1 :, c]]).mean()) for c in later}
    again = max(whole, key=lambda c: whole[c])
    study.table(
        "which layer chooses again",
        ("layer", "weight covered behind it", "weight covered in all sparse layers", "choices in common behind it"),
        [(c, later[c], whole[c], float(overlap[c + 1 :, c].mean())) for c in later],
    )
    study.table(
        "choices in common of two layers",
        ("layer", *map(str, range(0, layers, 4))),
        [(str(row), *(float(x) for x in overlap[row, ::4])) for row in range(0, layers, 4)],
    )
    for name, values in (
        ("by layer's own choice", best[again + 1 :]),
        (f"by layer {again}'s choice", covered[again + 1 :, again]),
    ):
        at = list(range(again + 1, layers))
        study.curve("weight covered", at, [float(x) for x in values], label=name, xlabel="layer", ylabel="share")
    share = later[again] / float(best[again + 1 :].mean())
    study.check(
        f"weight covered behind layer {again}, beside each layer's own {BUDGET}",
        share,
        at_least(0.9),
        claim="positions persist over layers",
        baseline=float(best[again + 1 :].mean()),
        why="three key heads a layer: heads of the same index need not attend alike in a model this small",
    )
    study.note(f"layer {again} chooses again: of all layers it leaves most weight covered (the table)")
    return again


def _stack(again: int, budget: int, more: str = "") -> str:
    return f"tidaldecode:budget={budget},layers={FIRST}+{again},sink={SINK},recent={RECENT},correct_every=0{more}"


def _quality(study: Study, texts: Sequence[Text], dense: Sequence[Array], again: int, rigs: Rigs) -> None:
    steps = 24 if study.quick else 65
    every = max((28 - FIRST) // 5, 1)
    several = "+".join(str(layer) for layer in range(FIRST, 29, every))
    stacks = {
        f"tidaldecode, {budget}": _stack(again, budget)
        for budget in ((BUDGET, 128) if study.quick else (64, 128, 256, 512, 1024))
    }
    stacks |= {
        "chosen once": f"tidaldecode:budget={BUDGET},layers={FIRST},correct_every=0",
        f"chosen in layers {several}": f"tidaldecode:budget={BUDGET},layers={several},correct_every=0",
        "each head for itself": _stack(again, BUDGET, ",share=head"),
        "all heads together": _stack(again, BUDGET, ",share=layer"),
        "exact top-k in every layer": f"exact-topk:budget={BUDGET},sink={SINK},recent={RECENT}",
        "sink and window": f"sink-window:budget={BUDGET}",
        "everything, selected": f"tidaldecode:budget=8192,layers={FIRST}+{again},dense_below=1,correct_every=0",
    }
    found: dict[str, tuple[float, float]] = {}
    base = float(np.exp(np.mean([np.log(t.perplexity(d[: steps - 1])) for t, d in zip(texts, dense, strict=True)])))
    with study.progress("stacks", len(stacks) * len(texts)) as told:
        for name, use in stacks.items():
            apart, logs = [], []
            with rigs(use) as rig:
                for text, exact in zip(texts, dense, strict=True):
                    read = text.read(rig, steps)
                    apart.append(float(divergence(read, exact[: steps - 1]).mean()))
                    logs.append(np.log(text.perplexity(read)))
                    told()
            found[name] = float(np.exp(np.mean(logs))) / base, float(np.mean(apart))
    study.table(
        "quality while decoding",
        ("stack", "perplexity / dense", "divergence, nats"),
        [(k, *v) for k, v in found.items()],
    )
    tidal = found[f"tidaldecode, {BUDGET}"]
    itself = 100 * (found["exact top-k in every layer"][0] - 1)
    study.check(
        f"perplexity with {BUDGET} tokens, beside dense",
        100 * (tidal[0] - 1),
        at_most(2.0),
        unit="%",
        claim="close to dense",
        why="where layers do not choose alike, two selection layers of thirty are too few",
    )
    study.check(
        f"the same with selection layers {several}",
        100 * (found[f"chosen in layers {several}"][0] - 1),
        at_most(2.0),
        unit="%",
        why=f"as many tokens, chosen in every layer for itself, cost {itself:.1f} %: what layers take over from those "
        "that choose is not what they would choose",
        fallback=True,
    )
    window, once = found["sink and window"][1], found["chosen once"][1]
    study.check(
        "divergence beside sink and window",
        tidal[1],
        less_than(window, "sink and window"),
        baseline=window,
        unit="nats",
    )
    study.check("divergence with a second choice", tidal[1], less_than(once, "chosen once"), baseline=once, unit="nats")
    same = found["everything, selected"]
    study.check("a budget for everything: divergence", abs(same[1]), at_most(0.0), claim="dense", unit="nats")


def _correction(study: Study, texts: Sequence[Text], dense: Sequence[Array], again: int, rigs: Rigs) -> None:
    """What computing a stream's own rows again brings, late in a long answer."""
    every, last = (16, 16) if study.quick else (64, 64)
    means = {}
    for name, often in (("never", 0), (f"every {every}", every)):
        use = f"tidaldecode:budget={FAST},layers={FIRST}+{again},correct_every={often}"
        with rigs(use) as rig, study.progress(f"correction {name}", len(texts)) as told:
            late = []
            for text, exact in zip(texts, dense, strict=True):
                late.append(divergence(text.read(rig), exact)[-last:].mean())
                told()
        means[name] = float(np.mean(late))
    study.check(
        f"divergence late in an answer, rows computed again every {every} tokens",
        means[f"every {every}"] / means["never"],
        at_most(0.7),
        baseline=means["never"],
        unit="x",
        claim="repairs what sparse steps leave behind",
        why="what is lost here is lost in the step itself and not through earlier rows",
    )
    study.note("a correction computes each of a stream's own rows once more, as part of a prompt's chunk")


def _retrieval(study: Study, n: int, again: int) -> None:
    stacks = {"tidaldecode": (f"tidaldecode:budget={BUDGET}",), "two layers choose": (_stack(again, BUDGET),)}
    found = answers(study, "needle", n, 1 if study.quick else 3, stacks)
    study.table("needles found", ("stack", "share of exact answers"), list(found.items()))
    study.check(
        f"needles found with {BUDGET} of {n} tokens, its default layers choosing",
        found["tidaldecode"],
        at_least(0.9 * found["dense"], "0.9 x dense"),
        claim="all, with 128 tokens of 10,000",
        baseline=found["dense"],
        why="layers choose little in common (the table), and what the two do not choose no layer behind them sees",
    )


def _speed(study: Study, texts: Sequence[Text], again: int, rigs: Rigs) -> None:
    """Decode steps in turns: dense on bf16 pages, which is the engine's default, and sparse."""
    steps, text = 8, texts[0]
    n = len(text.context)
    two, more = _stack(again, FAST), f"tidaldecode:budget={FAST},correct_every=0"
    with rigs(kv="bf16") as plain, rigs(two) as sparse, rigs(more) as default:
        stream = plain.open(text.context)
        plain.absorb(stream)
        streams = {
            "dense": (plain, stream),
            "two layers choose": (sparse, text.on(sparse)),
            "tidaldecode": (default, text.on(default)),
        }

        def decode(name: str) -> None:
            rig, stream = streams[name]
            for _ in range(steps):
                rig.step({stream: text.follow[0]})

        times = study.interleaved({name: partial(decode, name) for name in streams}, rounds=3 if study.quick else 5)
    for name, dense_layers in (("tidaldecode", FIRST + 6), ("two layers choose", FIRST + 2)):
        ideal = 30 / (dense_layers + (30 - dense_layers) * FAST / n)
        study.note(
            f"{name}: {dense_layers} of 30 layers read everything, so attention is at most {ideal:.1f} times as fast"
        )
        study.check(
            f"decode steps at {n} tokens with {FAST}, {name}",
            times.speedup(name, over="dense"),
            at_least(1.0 if study.quick else 1.6),
            unit="x",
            claim="up to 2.1x",
            headline=name == "tidaldecode",
            why="at 2,000 tokens attention is a small part of a step"
            if study.quick
            else f"{dense_layers} of 30 layers still read everything, and matrices take as long as before",
        )
