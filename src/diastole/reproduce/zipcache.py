"""ZipCache on SmolLM2-135M: a ladder of ways to quantise a context, and the technique as it is served.

The ladder quantises a context's keys and values once, after it has been absorbed in full precision, as the paper does;
the continuation reads them back. The served technique seals while it absorbs, page by page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

import numpy as np

from diastole.bench.longtext import Corpus
from diastole.bench.quality import log_softmax
from diastole.bench.quantisers import (
    Way,
    by_channel_and_group,
    by_group,
    by_token,
    cst,
    largest,
    plain,
    split,
    symmetric,
)
from diastole.bench.rig import Rig
from diastole.reproduce.must import Must, at_least, at_most, less_than
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread
from diastole.slots import View
from diastole.state.lease import Blob
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, Stream

PAPER = "ZipCache: salient tokens in 4 bits and the rest in 2, found by normalised attention of a few probes"

MODEL = "smollm2-135m"
NEXT = 128  # tokens of a continuation
RATIO, PROBES = 0.6, 0.05
PRODUCT = 236 / PAGE  # bytes of parameters of the served technique, see its docstring
DOMAINS = ("documentation", "code", "licences")


@dataclass
class Watcher:
    """A probe that keeps every column sum of a context's attention."""

    layers: int
    heads: int
    n: int
    rows: Array  # (n,) bool: those that probe
    everything: Array = field(init=False)  # (layers, heads, n): by all rows
    probed: Array = field(init=False)  # by those that probe

    def __post_init__(self) -> None:
        self.everything, self.probed = (np.zeros((self.layers, self.heads, self.n)) for _ in range(2))

    def need(self, layer: int, b: Batch) -> bool:
        return True

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        b, n = view.b, int(view.b.hi.max())
        s = np.empty((len(q), q.shape[1], n), np.float32)
        own = np.ascontiguousarray(q)
        view.ops.scores(own, view.pages, view.store.fmt, b.tables, b.starts, view.lo, b.hi, view.scale, s)
        weights = np.exp(s - lse[..., None]).reshape(len(q), self.heads, -1, n).sum(2)
        self.everything[view.layer, :, :n] += weights.sum(0)
        self.probed[view.layer, :, :n] += weights[self.rows[b.pos]].sum(0)


def probing(n: int, rng: np.random.Generator) -> Array:
    """5 % of the rows, the latest, and 5 % of the others."""
    rows = np.zeros(n, bool)
    recent = round(PROBES * n)
    rows[-recent:] = True
    rows[rng.choice(n - recent, recent, replace=False)] = True
    return rows


def ways(watcher: Watcher, dim: int, rng: np.random.Generator) -> list[Way]:
    """The ladder."""
    n, heads = watcher.n, watcher.heads
    seen = np.cumsum(watcher.rows[::-1])[::-1]
    at = np.arange(n)
    saliency = {
        "random": rng.random(watcher.everything.shape),
        "accumulated": watcher.everything,
        "normalised": watcher.everything / (n - at),
        "probes": watcher.probed / np.maximum(seen, 1),
        "recent": np.broadcast_to(at.astype(float), watcher.everything.shape),
    }
    by_page = largest(saliency["probes"].reshape(*saliency["probes"].shape[:2], -1, PAGE), 36 / PAGE)
    by_page = by_page.reshape(saliency["probes"].shape)
    return [
        plain("by token 8 bits", by_token, 8, 8),
        *(plain(f"by token {b} bits", by_token, b, 8) for b in (4, 2)),
        *(plain(f"by 32 channels {b} bits", by_group, b, 8 * dim / 32) for b in (4, 2)),
        *(by_channel_and_group(b, n, dim) for b in (4, 2)),
        *(cst(b, n, heads, dim) for b in (4, 3, 2)),
        *(split(name, largest(x, RATIO), 4, 2, n, heads, dim) for name, x in saliency.items()),
        split("probes, 36 of each page", by_page, 4, 2, n, heads, dim),
        split("probes, 36/64 of all", largest(saliency["probes"], 36 / PAGE), 4, 2, n, heads, dim),
    ]


@dataclass
class Loss:
    """What ways cost, over all contexts: of each a list."""

    surprise: dict[str, list[float]] = field(default_factory=dict)  # nats per token more than in full precision
    divergence: dict[str, list[float]] = field(default_factory=dict)
    equal: dict[str, list[float]] = field(default_factory=dict)  # share of first choices

    def add(self, name: str, own: Array, exact: Array, ids: Sequence[int]) -> None:
        at = np.arange(len(ids) - 1)
        more = exact[at, ids[1:]].mean() - own[at, ids[1:]].mean()
        self.surprise.setdefault(name, []).append(float(more))
        self.divergence.setdefault(name, []).append(float((np.exp(exact) * (exact - own)).sum(-1).mean()))
        self.equal.setdefault(name, []).append(float((own.argmax(-1) == exact.argmax(-1)).mean()))

    def perplexity(self, name: str) -> float:
        """How much larger, in percent."""
        return 100 * (float(np.exp(fmean(self.surprise[name]))) - 1)


def continued(rig: Rig, stream: Stream, ids: Sequence[int]) -> Array:
    """Log probabilities (n, V) after each of these tokens, fed in one go."""
    for token in ids:
        rig.loop.learn(stream, token)
    return log_softmax(rig.absorb_all(stream, len(ids)))


def rows_of(stream: Stream) -> Array:
    at = np.arange(stream.done)
    places: Array = np.array(stream.leases["kv"].places, np.int64)[at // PAGE] * PAGE + at % PAGE
    return places


def ladder(
    rig: Rig, served: Rig, study: Study, contexts: Sequence[tuple[str, int]], loss: Loss
) -> tuple[dict[str, float], list[float]]:
    """Every way on every context; gives their bytes of parameters, and how much the sets of normalised and probed
    saliency overlap."""
    spec, kv = rig.spec, rig.service.state["kv"]
    overlap: list[float] = []
    parameters: dict[str, float] = {}
    corpora = {name: Corpus.of(rig.tokenizer, name) for name, _ in contexts}
    with study.progress("quantising contexts", len(contexts)) as step:
        for i, (domain, n) in enumerate(contexts):
            text = corpora[domain].cut(n + NEXT, Random(f"{study.seed}/{i}"))
            rng = np.random.default_rng([study.seed, i])
            watcher = Watcher(spec.layers, spec.kv_heads, n, probing(n, rng))
            with rig.stream(text[:n]) as stream, rig.watched(watcher):
                rig.absorb(stream)
                blob, rows = rig.save(stream), rows_of(stream)
                read = [kv.read(layer, rows) for layer in range(spec.layers)]
            k, v = (np.ascontiguousarray(np.stack([x[part] for x in read]).swapaxes(1, 2)) for part in (0, 1))
            exact = reread(rig, blob, k, v, text[n:])
            for way in ways(watcher, spec.head_dim, rng):
                parameters[way.name] = way.parameters
                loss.add(way.name, reread(rig, blob, *way.run(k, v), text[n:]), exact, text[n:])
            with served.stream(text[:n]) as stream:
                served.absorb(stream)
                loss.add("served", continued(served, stream, text[n:]), exact, text[n:])
            a, b = (
                largest(x, RATIO)
                for x in (
                    watcher.everything / (n - np.arange(n)),
                    watcher.probed / np.maximum(np.cumsum(watcher.rows[::-1])[::-1], 1),
                )
            )
            overlap.append(float((a & b).sum() / (a | b).sum()))
            step()
    return parameters, overlap


def reread(rig: Rig, blob: Blob, k: Array, v: Array, ids: Sequence[int]) -> Array:
    """``continued`` after a context whose keys and values (layers, heads, n, dim) are these."""
    kv = rig.service.state["kv"]
    stream = rig.load(blob)
    rows = rows_of(stream)
    for layer in range(len(k)):
        own = (np.ascontiguousarray(x[layer].swapaxes(0, 1), np.float32) for x in (k, v))
        kv.write(layer, rows, *own)
    found = continued(rig, stream, ids)
    rig.close(stream)
    return found


def first_test(rig: Rig, n: int, seed: int) -> dict[str, float]:
    """Relative error of attention's output over a real context, by four bits in three forms, mean over layers."""
    spec, kv = rig.spec, rig.service.state["kv"]
    text = Corpus.of(rig.tokenizer).cut(n, Random(f"first {seed}"))
    found: dict[str, list[float]] = {}
    queries: list[Array] = []

    class Last:
        def need(self, layer: int, b: Batch) -> bool:
            return True

        def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
            queries.append(q[-16:].copy())

    with rig.stream(text) as stream, rig.watched(Last()):
        rig.absorb(stream)
        rows = rows_of(stream)
        read = [kv.read(layer, rows) for layer in range(spec.layers)]
    forms: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
        "symmetric by token": lambda k, v: (symmetric(k, 4), symmetric(v, 4)),
        "CST": cst(4, n, spec.kv_heads, spec.head_dim).run,
    }
    for layer, (k, v) in enumerate(read):
        q = queries[len(queries) - spec.layers + layer].reshape(16, spec.kv_heads, -1, spec.head_dim)
        k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)

        def attend(k: Array, v: Array, q: Array = q) -> Array:
            s = np.einsum("thgd,hnd->thgn", q, k) / np.sqrt(spec.head_dim)
            w = np.exp(s - s.max(-1, keepdims=True))
            out: Array = np.einsum("thgn,hnd->thgd", w / w.sum(-1, keepdims=True), v)
            return out

        exact = attend(k, v)
        for name, form in forms.items():
            error = np.linalg.norm(attend(*form(k, v)) - exact) / np.linalg.norm(exact)
            found.setdefault(name, []).append(float(error))
    return {name: 100 * fmean(errors) for name, errors in found.items()}


def _apart(loss: Loss, own: str, other: str) -> str:
    """How far two ways are apart for sure."""
    more = np.subtract(loss.surprise[own], loss.surprise[other])
    error = float(more.std(ddof=1)) / len(more) ** 0.5 if len(more) > 1 else float("nan")
    sides = [(fmean(loss.divergence[name]), 100 * fmean(loss.equal[name])) for name in (own, other)]
    return (
        f"{more.mean():.4f} nats a token more, with a standard error of {error:.4f} over {len(more)} contexts; they "
        f"diverge by {sides[0][0]:.3f} and {sides[1][0]:.3f} nats and keep {sides[0][1]:.1f} and {sides[1][1]:.1f} % "
        "of the first choices"
    )


def told(study: Study, loss: Loss, parameters: dict[str, float], overlap: Sequence[float]) -> None:
    """The ladder's inequalities."""
    ppl = {name: loss.perplexity(name) for name in loss.surprise}

    def beside(what: str, own: str, other: str, must: Must, why: str = "", fallback: bool = False) -> None:
        text = f"perplexity lost, {what}"
        study.check(text, ppl[own], must, unit="%", baseline=ppl[other], why=why, fallback=fallback)

    for name in ("random", "accumulated", "recent", "CST 3 bits"):
        beside(f"probes beside {name}", "probes", name, less_than(ppl[name]), _apart(loss, "probes", name))
    beside("probes beside all rows", "probes", "normalised", at_most(1.1 * ppl["normalised"], "1.1 x all rows"))
    for b in (4, 2):
        own, tokens, groups = f"CST {b} bits", f"by token {b} bits", f"by 32 channels {b} bits"
        mixed = f"keys by channel, values by 32, {b} bits"
        whole = f"keys by channel lose {ppl[mixed]:.2f} % even where values have groups of 32 channels"
        beside(f"{b} bits, CST beside by token", own, tokens, at_most(ppl[tokens]), whole)
        why = (
            "a key's channel spans a wider range over a whole context than over the 32 channels of one token, which "
            f"cost {parameters[groups] / parameters[own]:.0f} x as many bytes of parameters"
        )
        beside(f"{b} bits, CST beside by 32 channels", own, groups, at_most(1.05 * ppl[groups], "1.05 x"), why)
        study.note(f"{b} bits, keys by channel and values by 32 channels: perplexity lost {ppl[mixed]:.2f} %")
    study.table(
        "Ways to quantise a context",
        ("way", "perplexity lost, %", "divergence, nats", "first choices equal, %", "bytes of parameters"),
        [(n, ppl[n], fmean(loss.divergence[n]), 100 * fmean(loss.equal[n]), parameters.get(n, PRODUCT)) for n in ppl],
    )
    study.note("bytes of parameters are per token of a head, keys and values together, at the longest context")
    study.note(f"sets of salient tokens by all rows and by probes overlap by {fmean(overlap):.0%} (Jaccard)")


def served_bytes(study: Study, rig: Rig, text: Sequence[int]) -> None:
    """Exact bytes at 4096 tokens, most of them a prompt, and just after, when a new page is in 16 bits."""
    kv, n = rig.service.state["kv"], 4096
    dense = 2 * 2 * PAGE * rig.spec.layers * rig.spec.kv_heads * rig.spec.head_dim
    with rig.stream(text[: n - 100]) as stream:
        rig.absorb(stream)
        ratios = {}
        for token in text[n - 100 : n + 65]:
            rig.step({stream: token})
            pages = stream.leases["kv"].places
            ratios[stream.done] = len(pages) * dense / kv.held(pages)
    study.check(
        "smaller than in 16 bits, 4096 tokens", ratios[n], at_least(4.5), unit="x", claim="4.98x", headline=True
    )
    worst = min(ratios[i] for i in range(n, n + 65))
    study.check("the same, worst of 4096 to 4160 tokens", worst, at_least(4.5), unit="x")
    study.note(
        "whole pages count on both sides: codes, parameters, class bits, and the tail in 16 bits with its saliency"
    )


class Timed:
    """Seconds within a function."""

    def __init__(self, inner: Callable[..., object]) -> None:
        self.inner, self.seconds = inner, 0.0

    def __call__(self, *args: object) -> object:
        began = time.perf_counter()
        try:
            return self.inner(*args)
        finally:
            self.seconds += time.perf_counter() - began


def probe_cost(study: Study, rig: Rig, text: Sequence[int]) -> None:
    """Of a prompt: seconds of the probe and of sealing beside those of attention."""
    kv = rig.service.state["kv"]
    shares, seals = [], []
    for _ in range(3):
        see, attend, compress = Timed(kv.see), Timed(kv.attend), Timed(kv.compress)
        kv.see, kv.attend, kv.compress = see, attend, compress
        try:
            with rig.stream(text) as stream:
                rig.absorb(stream)
        finally:
            del kv.see, kv.attend, kv.compress
        shares.append(100 * see.seconds / attend.seconds)
        seals.append(1e3 * compress.seconds)
    study.check(f"probe beside attention, prompt of {len(text)}", Spread.of(shares), at_most(12), unit="%")
    study.note(f"sealing this prompt took {min(seals):.0f} ms")


def decoding(study: Study, dense: Rig, rig: Rig, text: Sequence[int], steps: int) -> None:
    streams = {"bf16": (dense, dense.open(text)), "zipcache": (rig, rig.open(text))}
    for own, stream in streams.values():
        own.absorb(stream)

    def turn(name: str) -> Callable[[], object]:
        own, stream = streams[name]

        def go() -> None:
            for i in range(steps):
                own.step({stream: text[i]})

        return go

    times = study.interleaved({name: turn(name) for name in streams}, rounds=3 if study.quick else 7, what="decoding")
    speed, why = times.speedup("zipcache", over="bf16"), ""
    if float(speed) < 1:
        kv = rig.service.state["kv"]
        kv.attend = attend = Timed(kv.attend)
        try:
            turn("zipcache")()
        finally:
            del kv.attend
        step, reading, whole = (
            1e3 * s / steps for s in (times.median("zipcache"), attend.seconds, times.median("bf16"))
        )
        why = (
            f"of a step's {step:.1f} ms opening codes and looking at them takes {reading:.1f}: with all else, layer by "
            f"layer, that is as long as the {whole:.1f} of 16 bits in one native call"
        )
    study.check(f"decoding over {len(text)} tokens", speed, at_least(1.0), unit="x", why=why,
                claim="56.9 % less latency (beside MiKV on a GPU)")  # fmt: skip
    for own, stream in streams.values():
        own.close(stream)


def run(study: Study) -> None:
    quick, loss = study.quick, Loss()
    lengths = [512] if quick else [512, 1024, 2048]
    contexts = [(d, n) for n in lengths for d in DOMAINS for _ in range(1 if quick else 3)]
    long = 2048 if quick else 7040
    with Rig(MODEL, kv="f32", context=8192, streams=2, memory=1 << 30) as exact:
        error = first_test(exact, 512 if quick else 1024, study.seed)
        bad = error["symmetric by token"]
        study.check("attention's error, 4 bits, CST", error["CST"], less_than(bad, "symmetric"), unit="%", baseline=bad)
        with Rig(MODEL, ("zipcache",), context=8192, streams=2, memory=1 << 29) as rig:
            told(study, loss, *ladder(exact, rig, study, contexts, loss))
            text = Corpus.of(rig.tokenizer).cut(max(long, 4200), Random(f"served {study.seed}"))
            served_bytes(study, rig, text)
            probe_cost(study, rig, text[: 2048 if quick else 4096])
            with Rig(MODEL, kv="bf16", context=8192, streams=2, memory=1 << 29) as dense:
                decoding(study, dense, rig, text[:long], 16 if quick else 64)
    study.note(
        "the ladder quantises once, after the context; what is served is sealed page by page while it is absorbed"
    )
    study.note("the paper's scores on GSM8k are not measured: a model of 135 million parameters solves none of it")
