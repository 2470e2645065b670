"""Double Sparsity on SmolLM2-135M: are a few channels of every key enough to find the tokens that matter?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np

from diastole.assets import resolve
from diastole.bench.longtext import DOMAINS, Corpus
from diastole.bench.quality import log_softmax
from diastole.bench.rig import Rig
from diastole.bench.sparse import Attending
from diastole.calibrate import double_sparsity as calibration
from diastole.calibrate.job import Job
from diastole.kernels.table import load
from diastole.reproduce.contexts import Rigs, answers, copied, divergence
from diastole.reproduce.labels import Foretelling, Seen, Spy, best, covered, forced, ladder, top
from diastole.reproduce.must import at_least, at_most, more_than
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread
from diastole.types import Array
from diastole.weights import open_checkpoint
from diastole.weights.calibration import Calibration, about, find

PAPER = "Post-Training Sparse Attention with Double Sparsity (arXiv 2408.07092)"

NAME = "double-sparsity"
R = 16  # channels
DENSE = 2  # first layers
SHARE = "budget=32,share=0.125"  # n/8 tokens
PAPER_LABELS = f"{NAME}:channels={R},bits=16,{SHARE}"
EIGHTH = f"{NAME}:{SHARE}"  # with the default's labels: more channels, of four bits
LONGEST = 7_900  # tokens: nearly all that the model can look back at
SMALL = (NAME, "int8-kv")  # as it comes, 512 tokens, over keys and values in eight bits


def run(study: Study) -> None:
    n = 2_000 if study.quick else 7_000
    _domains(study)
    with Rigs(n + 80)() as rig:
        checkpoint = open_checkpoint(resolve("smollm2-135m"))
        facts = rig.decoder.facts(checkpoint)
        importance = find(NAME, facts).tensors
        code = Corpus.of(rig.tokenizer, "code")
        texts = [code.cut(n + 80, Random(study.seed + i)) for i in range(1 if study.quick else 2)]
        _weight(study, rig, texts, n, importance)
        _foretold(study, rig, texts[0], n, importance)
    with tempfile.TemporaryDirectory() as folder:
        blind = Path(folder, "random.safetensors")
        noise = np.random.default_rng(study.seed).random(importance["qk"].size, np.float32)
        Calibration({"qk": noise.reshape(importance["qk"].shape)}, about(NAME, facts)).write(blind)
        for length in (n,) if study.quick else (2_000, 4_000, n):
            _quality(study, [text[: length + 65] for text in texts], length, blind)
    _needles(study, n)
    _speed(study, texts[0], n)


def _domains(study: Study) -> None:
    """Channels chosen on one domain and on another."""
    tokens = 2_048 if study.quick else 16_384
    chosen: dict[str, Array] = {}
    with Rig(kv="f32", context=calibration.CONTEXT + 1) as rig:
        for name in DOMAINS:
            ids = Corpus.of(rig.tokenizer, name).ids[:tokens]
            with study.progress(f"channels of {name}", len(ids) // calibration.CONTEXT) as told:
                measured = calibration.measure(Job(rig, ids, lambda n, told=told: told()))  # type: ignore[misc]
            chosen[name] = top(measured["qk"], R)
    common = {f"{a} and {b}": _jaccard(chosen[a], chosen[b]) for a, b in combinations(chosen, 2)}
    study.table(
        "channels in common (Jaccard), mean of layers and least of any layer",
        ("domains", "mean", "least"),
        [(pair, float(x.mean()), float(x.min())) for pair, x in common.items()],
    )
    for pair, x in common.items():
        study.curve("channels in common", range(len(x)), x.tolist(), label=pair, xlabel="layer", ylabel="Jaccard")
    study.check(
        f"the same {R} channels whatever the text: least mean of two domains",
        min(float(x.mean()) for x in common.values()),
        at_least(0.7),
        claim="outlier channels are static",
    )


def _jaccard(a: Array, b: Array) -> Array:
    """Of each layer: (L,)."""
    both = (a[..., :, None] == b[..., None, :]).sum((-1, -2))
    found: Array = (both / (2 * a.shape[-1] - both)).mean(1)
    return found


def _steps(rig: Rig, ids: Sequence[int], n: int, steps: int, see: Callable[[], None]) -> None:
    """Absorb ``n`` tokens densely and decode ``steps`` more, looking after each."""
    with rig.stream(ids[:n]) as stream:
        rig.absorb(stream)
        for token in ids[n : n + steps]:
            rig.step({stream: token})
            see()


def _weight(study: Study, rig: Rig, texts: Sequence[Sequence[int]], n: int, importance: Mapping[str, Array]) -> None:
    """Softmax weight on what each way chooses, and how much of the oracle's choice it makes too."""
    ways, steps = ladder(importance, study.seed), 3 if study.quick else 8
    budgets = (n // 16, n // 8, 256, 512)
    mass: dict[tuple[str, int], list[float]] = {}
    recall: dict[tuple[str, int], list[float]] = {}
    spy = Spy()

    def look(told: Callable[[], None]) -> None:
        for layer in range(DENSE, rig.spec.layers):
            seen = spy.layers[layer]
            wanted = {name: forced(way(seen)) for name, way in ways.items()}
            for budget in budgets:
                oracle = best(wanted["oracle"], budget)
                for name in ways:
                    chosen = best(wanted[name], budget)
                    mass.setdefault((name, budget), []).append(covered(seen, chosen))
                    recall.setdefault((name, budget), []).append(float((oracle * chosen).sum() / oracle.sum()))
        told()

    with rig.watched(spy), study.progress("softmax weight", steps * len(texts)) as told:
        for text in texts:
            _steps(rig, text, n, steps, partial(look, told))
    for title, found in (
        (f"softmax weight on what is chosen of {n} tokens of code", mass),
        ("share of the oracle's choice", recall),
    ):
        study.table(
            title,
            ("way", *(f"{b} tokens" for b in budgets)),
            [(name, *(float(np.mean(found[name, b])) for b in budgets)) for name in ways],
        )
    study.note("the oracle chooses by the exact weights' sum over a group's heads: nothing shared by them covers more")
    at = {name: float(np.mean(mass[name, n // 8])) for name in ways}
    labels, oracle, blind = at[f"qk, {R} channels"], at["oracle"], at[f"random, {R} channels"]
    study.check(
        f"weight covered with {R} channels and n/8 tokens",
        labels,
        at_least(0.95 * oracle, "0.95 x oracle"),
        claim="labels find the heavy tokens",
        baseline=oracle,
    )
    study.check("the same beside random channels", labels, more_than(blind + 0.1, "random + 0.1"), baseline=blind)


def _foretold(study: Study, rig: Rig, text: Sequence[int], n: int, importance: Mapping[str, Array]) -> None:
    """How much of what a layer chooses is chosen a layer early, of what is not always there anyway."""
    channels, spy, steps = top(importance["qk"], R), Spy(), 3 if study.quick else 8
    hits: dict[str, list[float]] = {}
    for name, own_norm in (("next layer's norm", False), ("this layer's norm", True)):
        ahead, before = Foretelling(rig.decoder, own_norm), rig.service.model
        found: list[float] = []

        def look(ahead: Foretelling = ahead, found: list[float] = found) -> None:
            for layer in range(DENSE, len(channels)):
                seen = spy.layers[layer]
                guess = Seen(layer, ahead.queries[layer][0].reshape(seen.q.shape), seen.k, seen.weights)
                sets = [_fetched(s.scored(channels[layer]), n // 8) for s in (seen, guess)]
                found.append(covered(seen, sets[0] * sets[1]) / max(covered(seen, sets[0]), 1e-9))

        rig.service.model = ahead  # type: ignore[assignment]
        try:
            with rig.watched(spy), study.progress(f"prefetch: {name}", 1) as told:
                _steps(rig, text, n, steps, look)
                told()
        finally:
            rig.service.model = before
        hits[name] = found
    study.table(
        "weight of the fetched tokens that is foretold a layer early",
        ("queries by", "mean", "least of any layer and step"),
        [(name, float(np.mean(x)), float(np.min(x))) for name, x in hits.items()],
    )
    study.check(
        "prefetch: weight foretold by the layer before",
        float(np.mean(hits["next layer's norm"])),
        at_least(0.8),
        claim="neighbouring layers' inputs are alike",
        why="30 narrow layers: each changes its input more than one of a 7B model does",
    )
    study.note(
        "prefetch: only what is chosen is studied; no transport exists here, first and latest tokens do not count"
    )


def _fetched(wanted: Array, budget: int) -> Array:
    wanted = forced(wanted)
    return best(wanted, budget) * np.isfinite(wanted)


def _quality(study: Study, texts: Sequence[Sequence[int]], n: int, blind: Path) -> None:
    """Teacher-forced continuation of dense contexts."""
    k = n // 8
    stacks: dict[str, tuple[str, ...]] = {
        f"{R} channels, n/8": (PAPER_LABELS,),
        "as served, n/8": (EIGHTH,),
        "512, int8-kv": SMALL,
        "random channels": (f"{PAPER_LABELS},calibration={blind}",),
        "exact top-k": (f"exact-topk:budget={k}",),
        "sink and window": (f"sink-window:budget={k}",),
        "everything, selected": (f"{NAME}:share=1,dense_below=1",),
    }
    if not study.quick:
        stacks |= {f"{r} channels, n/8": (f"{NAME}:channels={r},bits=16,{SHARE}",) for r in (4, 8, 32)}
        stacks |= {f"by {by}": (f"{PAPER_LABELS},by={by}",) for by in ("q", "k")}
        stacks |= {"in pairs": (f"{PAPER_LABELS},pairs=true",), "n/16": (f"{NAME}:budget=32,share=0.0625",)}
        stacks |= {"512": (NAME,), "everything, int8-kv": ("int8-kv",)}
    rigs = Rigs(n + 80)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in stacks}
    with rigs() as dense, study.progress(f"continuations at {n}", len(texts) * (1 + len(stacks))) as told:
        for text in texts:
            with dense.stream(text[:n]) as trunk:
                dense.absorb(trunk)
                fork = dense.fork(trunk)
                exact = _read(dense, fork, text[n:])
                told()
                for name, use in stacks.items():
                    with rigs(*use) as rig:
                        read = _read(rig, copied(dense, trunk, rig), text[n:])
                    surprise = [_surprise(x, text[n:]) for x in (read, exact)]
                    found[name].append((surprise[0] - surprise[1], float(divergence(read, exact).mean())))
                    told()
                dense.close(fork)
    rows = {
        name: (100 * float(np.expm1(np.mean(np.array(x)[:, 0]))), float(np.mean(np.array(x)[:, 1])))
        for name, x in found.items()
    }
    study.table(
        f"continuations of {n} tokens of code",
        ("stack", "perplexity beside dense, %", "divergence, nats"),
        [(name, *row) for name, row in rows.items()],
    )
    study.check(
        f"perplexity at {n} with {R} channels and n/8 tokens, beside dense",
        rows[f"{R} channels, n/8"][0],
        at_most(2.0),
        unit="%",
        claim="minimal loss at 1/16",
        baseline=rows["exact top-k"][0],
        why="exact top-k of the same budget is the baseline: what it loses no label can bring back",
    )
    study.check(
        f"the same at {n} as served, by 32 channels of four bits",
        rows["as served, n/8"][0],
        at_most(2.0),
        unit="%",
        baseline=rows["exact top-k"][0],
    )
    study.check(
        f"the same at {n} with int8 keys and values, 512 tokens: what is fastest",
        rows["512, int8-kv"][0],
        at_most(2.0),
        unit="%",
        baseline=rows["everything, int8-kv"][0] if "everything, int8-kv" in rows else None,
    )
    study.check(f"a budget for everything at {n}: divergence", abs(rows["everything, selected"][1]), at_most(0.0))


def _read(rig: Rig, stream: object, follow: Sequence[int]) -> Array:
    return log_softmax(np.stack([rig.step({stream: token})[0] for token in follow[:-1]]))  # type: ignore[dict-item]


def _surprise(read: Array, follow: Sequence[int]) -> float:
    """Mean nats of the tokens that come."""
    return -float(read[np.arange(len(read)), list(follow[1:])].mean())


def _needles(study: Study, n: int) -> None:
    exact, paper = "exact top-k", f"{R} channels"
    stacks = {
        NAME: (EIGHTH,),
        "512, int8-kv": SMALL,
        paper: (PAPER_LABELS,),
        exact: (f"exact-topk:budget={n // 8}",),
        "sink and window": (f"sink-window:budget={n // 8}",),
    }
    found = answers(study, "needle", n, 1 if study.quick else 3, stacks)
    study.table("needles found", ("stack", "share of exact answers"), list(found.items()))
    must = at_least(0.9 * found["dense"], "0.9 x dense")
    study.check(
        f"needles found at {n} with n/8 tokens, as served",
        found[NAME],
        must,
        claim="key-value retrieval keeps its accuracy",
        baseline=found[exact],
    )
    study.check(f"the same at {n} with int8 keys and values, 512 tokens", found["512, int8-kv"], must)


def _speed(study: Study, text: Sequence[int], n: int) -> None:
    """Attention alone on random numbers, then whole decode steps on text; dense is what the engine does by itself."""
    ops, rounds, long = load(), 3 if study.quick else 7, 7_000
    stacks = {"dense": (), "n/8": (f"{EIGHTH},dense_layers=0",), "512": (f"{NAME}:budget=512,dense_layers=0",)}
    fields = {name: Attending(use, long, ops) for name, use in stacks.items()}
    rng = np.random.default_rng(study.seed)
    times = study.interleaved({name: partial(_attend, field, rng) for name, field in fields.items()}, rounds)
    share = times.median("512") / times.median("dense")
    study.check(
        f"attention of all layers at {long}, 512 tokens: share of dense attention's time",
        share,
        at_most(0.35),
        claim="up to 14.1x as fast",
        unit="x",
        why="dense attention reads memory in order at 4/5 of its speed; single tokens of 256 bytes come at half of it",
    )
    study.table(
        f"attention of one decode step at {long} tokens, all 30 layers sparse",
        ("stack", "ms", "bytes per token of context"),
        [(name, 1e3 * times.median(name) / 4, field.bytes_per_token) for name, field in fields.items()],
    )
    labels = fields["n/8"].bytes_per_token / fields["dense"].bytes_per_token - 1
    must = at_most(12.5, "r / 2D: 16 of 64 channels")
    study.check("bytes of labels beside keys and values", 100 * labels, must, unit="%")
    del fields
    _steps_of_text(study, text, n, rounds)


def _attend(field: Attending, rng: np.random.Generator) -> None:
    for _ in range(4):
        field.step(rng)


def _steps_of_text(study: Study, text: Sequence[int], n: int, rounds: int) -> None:
    text = list(text) * (LONGEST // len(text) + 1)  # where it is too short it begins again: nobody asks what it says
    study.check(
        "decode steps at 512, below its threshold",
        _sped_up(study, text[:512], rounds, NAME),
        at_least(0.95),
        unit="x",
        why="labels are written in every layer, whatever the length",
    )
    study.check(
        f"decode steps at {n}, 512 tokens",
        _sped_up(study, text[:n], rounds, NAME),
        at_least(1.6),
        unit="x",
        claim="1.9x",
        headline=True,
    )
    study.check(
        f"decode steps at {LONGEST}, 512 tokens of int8 keys and values",
        _sped_up(study, text[:LONGEST], rounds, *SMALL),
        at_least(2.0),
        unit="x",
        why="about a third of a dense step is not attention and stays, so choosing and reading tokens may take a third "
        "of dense attention's time at most",
    )


def _sped_up(study: Study, text: Sequence[int], rounds: int, *use: str) -> Spread:
    """Decode steps after this text, beside dense ones over bf16."""
    rigs = Rigs(len(text) + 100)
    with rigs(kv="bf16") as dense, rigs(*use) as sparse:
        streams = {"dense": (dense, dense.open(text)), NAME: (sparse, sparse.open(text))}
        for rig, stream in streams.values():
            rig.absorb(stream)

        def decode(name: str) -> None:
            rig, stream = streams[name]
            for _ in range(8):
                rig.step({stream: text[0]})

        return study.interleaved({name: partial(decode, name) for name in streams}, rounds).speedup(NAME, over="dense")
