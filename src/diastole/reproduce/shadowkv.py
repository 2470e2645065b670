"""ShadowKV: why keys before rotation are of low rank, what landmarks find, what it costs in quality, bytes and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import numpy as np

from diastole.assets import resolve
from diastole.bench import chunks, watching
from diastole.bench.longtext import Corpus
from diastole.bench.quality import log_softmax
from diastole.bench.rig import Rig
from diastole.kernels.blas import one_thread
from diastole.nn.inside import Inside, softmax
from diastole.reproduce.must import at_least, at_most, less_than, more_than
from diastole.reproduce.study import Study
from diastole.slots import View
from diastole.state.pages import PAGE
from diastole.stores.shadow import CHUNK
from diastole.types import Array, Stream
from diastole.weights import open_checkpoint

PAPER = "ShadowKV: low-rank keys before rotation, values at a distance, chunks chosen by landmarks"
LAYERS, HEADS, GROUPS, DIM = 30, 9, 3, 64  # of SmolLM2-135M
RANKS = (24, 32, 48, 64, 96)
LOCAL = 4 * CHUNK
IDENTITY = 1e-3
LINKS = {"PCIe, 25 GB/s": 25e9, "NVMe, 3 GB/s": 3e9}  # bytes per second


def run(study: Study) -> None:
    sizes = QUICK if study.quick else FULL
    longest = max(t.prompt for t in sizes.texts) + sizes.steps + 1
    rng = Random(f"shadowkv {study.seed}")
    with Rig(kv="rows", context=longest, streams=2) as dense:
        corpus = Corpus.of(dense.tokenizer)
        ids = {t: corpus.cut(t.prompt + sizes.steps, rng) for t in sizes.texts}
        first = sizes.texts[0]
        spectra(study, dense, ids[first][: first.prompt])
        recall(study, dense, first, ids[first])
        identity(study, dense, ids[first])
        for text in sizes.texts:
            quality(study, dense, text, ids[text], sizes)
    cost(study, corpus.cut(LONG + STEPS, rng), sizes.rounds)
    study.note(
        "scaled: keys are 192 numbers wide (3 heads of 64) and not 1,024, contexts at most 8k. Keys of 192 leave less "
        "to be gained by low rank. Not shown: 128k contexts, a six times larger batch on a GPU, RULER on 8B models."
    )
    study.note(
        "there is no second device: the cold tier is another part of memory. Its bytes are counted; the seconds for "
        "links are those bytes divided by the links' rates, not measured."
    )


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt's length, and about 12 percent of it as budget, with 24 outliers per 1,024 tokens of that."""

    prompt: int
    budget: int
    outliers: int

    @property
    def sealed(self) -> int:
        """Tokens that are chosen from."""
        return (self.prompt - LOCAL) // PAGE * PAGE

    @property
    def total(self) -> int:
        """Tokens of these that are attended to: what every other way may have too."""
        return self.budget + self.outliers * CHUNK

    def use(self, **knobs: Any) -> str:
        """The technique as users write it."""
        own = {"rank": 48, "sparse_budget": self.budget, "outlier_chunks": self.outliers} | knobs
        return "shadowkv:" + ",".join(f"{k}={v}" for k, v in own.items())


@dataclass(frozen=True, slots=True)
class Sizes:
    texts: tuple[Text, ...]
    steps: int  # tokens fed after a prompt, each of which is judged
    rounds: int


QUICK = Sizes((Text(1400, 168, 4),), 16, 3)
FULL = Sizes((Text(2048, 240, 6), Text(4096, 488, 12), Text(7000, 840, 20)), 64, 9)
LONG, STEPS = 7000, 24  # where bytes and seconds are counted


# ---- why


def spectra(study: Study, dense: Rig, ids: Sequence[int]) -> None:
    """Study 1: singular values of keys before and after rotation, of values and of the weights that make keys."""
    kinds: dict[str, list[Array]] = {name: [] for name in ("before rotation", "after rotation", "values", "weights")}
    checkpoint = open_checkpoint(resolve("smollm2-135m"))
    with dense.stream(ids) as stream, one_thread(), study.progress("spectra", LAYERS) as step:
        dense.absorb(stream)
        for layer in range(LAYERS):
            k, v = _rows(dense, stream, layer, len(ids))
            weights = checkpoint.f32(f"model.layers.{layer}.self_attn.k_proj.weight")
            for name, x in zip(kinds, (_unrotated(dense, k), k, v, weights.T), strict=True):
                kinds[name].append(_energies(x.reshape(len(x), -1)))
            step()
    checkpoint.close()
    error = {n: {r: fmean(float(np.sqrt(e[r:].sum() / e.sum())) for e in es) for r in RANKS} for n, es in kinds.items()}
    study.table(
        "relative error of the best approximation, mean over layers",
        ("rank", *error),
        [(r, *(e[r] for e in error.values())) for r in RANKS],
    )
    for name, energies in kinds.items():
        values = np.mean([np.sqrt(e / e[0]) for e in energies], 0)
        study.curve("singular values", range(1, len(values) + 1), values, label=name, xlabel="index", ylabel="relative")
    before, after = error["before rotation"][48], error["after rotation"][48]
    study.check(
        "error of keys at rank 48",
        before,
        less_than(0.6 * after, "0.6 x after rotation"),
        claim="keys are of low rank before rotation",
        baseline=after,
    )


def _energies(x: Array) -> Array:
    """Squared singular values, the largest first."""
    wide = x.astype(np.float64)
    return np.maximum(np.linalg.eigvalsh(wide.T @ wide)[::-1], 0)


def _rows(rig: Rig, stream: Stream, layer: int, n: int) -> tuple[Array, Array]:
    """A layer's keys, rotated, and values of a stream's first tokens: (n, Hkv, D) each."""
    at = np.arange(n)
    pages = np.array(stream.leases["kv"].places, np.int64)[at // PAGE]
    k, v = rig.service.state["kv"].read(layer, pages * PAGE + at % PAGE)
    return k, v


def _unrotated(rig: Rig, k: Array) -> Array:
    facts: Any = rig.service.model
    table = facts.blocks[0].attn.rope.copy()
    table[:, table.shape[1] // 2 :] *= -1
    x = k.copy()
    facts.ops.rope(x, np.arange(len(x), dtype=np.int32), table)
    return x


def recall(study: Study, dense: Rig, text: Text, ids: Sequence[int]) -> None:
    """Study 2: how much of the mass that the best chunks have is found by landmarks, with more or fewer outliers."""
    outliers = (0, text.outliers, 2 * text.outliers)
    found: dict[int, list[float]] = {o: [] for o in outliers}
    watch, marks = watching.Watch(), chunks.Landmarks()
    n, total = text.sealed, text.total // CHUNK
    with dense.stream(ids[: text.prompt]) as stream, watching.inside(dense, Inside(probes=(watch,))):
        dense.absorb(stream)
        keys = [_rows(dense, stream, layer, n)[0] for layer in range(LAYERS)]
        worst = [_least_alike(k) for k in keys]
        for token in ids[text.prompt : text.prompt + 8]:
            dense.step({stream: token})
            for layer, (view, q, _) in watch.seen.items():
                own = q[0].reshape(GROUPS, -1, DIM) * np.float32(view.scale)
                s = np.einsum("ngd,ghd->ghn", keys[layer], own)
                mass = np.exp(s - s.max(-1, keepdims=True))
                mass = (mass / mass.sum(-1, keepdims=True)).reshape(GROUPS, -1, n // CHUNK, CHUNK).sum((1, 3))
                best = np.sort(mass, -1)[:, ::-1][:, :total].sum()
                logits = marks.scores(marks.prepare(keys[layer]), own)
                for o in outliers:
                    exact = worst[layer][:, :o]
                    rest = logits.copy()
                    np.put_along_axis(rest, np.broadcast_to(exact[:, None], (*rest.shape[:2], o)), -np.inf, -1)
                    chosen = np.concatenate([chunks.largest(rest, total - o), exact], 1)
                    found[o].append(float(np.take_along_axis(mass, chosen, -1).sum() / best))
    study.table(
        f"share of the best {total} chunks' mass that is found, of {n:,} tokens",
        ("outliers", "mean", "worst layer and token"),
        [(o, fmean(f), min(f)) for o, f in found.items()],
    )


def _least_alike(keys: Array) -> Array:
    """Chunks by the least cosine of a key with its landmark, the lowest first: (Hkv, chunks)."""
    parts = keys.reshape(-1, CHUNK, GROUPS, DIM)
    marks = parts.mean(1, keepdims=True)
    cosine = (parts * marks).sum(-1) / np.maximum(np.linalg.norm(parts, axis=-1) * np.linalg.norm(marks, axis=-1), 1e-9)
    return np.argsort(cosine.min(1), axis=0, kind="stable").T


# ---- what it costs in quality


def identity(study: Study, dense: Rig, ids: Sequence[int]) -> None:
    """All of the rank and all of the budget: attention of every layer beside exact attention over the same rows."""
    budget = (len(ids) - LOCAL - 8) // PAGE * PAGE
    prompt = budget + LOCAL + 8
    watch, worst = watching.Watch(), [0.0, 0.0, 0.0]
    use = f"shadowkv:rank=192,sparse_budget={budget},outlier_chunks=0"
    with Rig(use=(use,), context=len(ids) + 8) as rig, rig.stream(ids[:prompt]) as stream:
        acts: Inside = rig.service.state["inside"]
        with dense.stream(ids[:prompt]) as twin, watching.inside(rig, Inside(acts.select, None, (watch,))):
            dense.absorb(twin)
            rig.absorb(stream)
            rig.step({stream: ids[prompt]})
            for layer, (view, q, out) in watch.seen.items():
                at = np.arange(budget, prompt + 1)
                pages = view.b.tables[0, at // PAGE].astype(np.int64)
                after = view.store.read(layer, pages * PAGE + at % PAGE)
                k, v = (np.concatenate(x) for x in zip(_rows(dense, twin, layer, budget), after, strict=True))
                share = HEADS // GROUPS
                exact, _ = softmax(q[0], k.repeat(share, 1), v.repeat(share, 1), view.scale)
                full = _dense_attention(view, q, k, v)
                for i, (x, y) in enumerate(((out[0], full), (out[0], exact), (full, exact))):
                    worst[i] = max(worst[i], float(np.linalg.norm(x - y) / np.linalg.norm(y)))
    study.check(
        "attention at rank 192 and full budget: relative error beside full attention, worst layer",
        worst[0],
        at_most(IDENTITY),
    )
    study.table(
        "relative error of a decoding token's attention, worst layer, at rank 192 and full budget",
        ("", "beside full attention as it runs", "beside exact numbers over the same rows"),
        [("ShadowKV", worst[0], worst[1]), ("full attention", 0.0, worst[2])],
    )


def _dense_attention(view: View, q: Array, k: Array, v: Array) -> Array:
    """Of one row over all of these, by the ordinary kernel in bf16."""
    pages, ops = -(-len(k) // PAGE), view.ops
    buf = ops.alloc(pages * GROUPS * ops.kv_page_bytes("bf16", DIM)).reshape(pages, GROUPS, -1)
    ops.kv_write(buf, "bf16", np.arange(len(k)), k, v)
    out, tables = np.empty_like(q), np.arange(pages, dtype=np.int32)[None]
    lo, hi = np.zeros(1, np.int32), np.array([len(k)], np.int32)
    ops.attend(q, buf, "bf16", tables, np.array([0, 1], np.int32), lo, hi, view.scale, out)
    full: Array = out[0]
    return full


@dataclass(frozen=True, slots=True)
class Judged:
    perplexity: float
    divergence: float  # from dense attention, Kullback-Leibler, nats per token

    @classmethod
    def of(cls, logits: Array, dense: Array, ids: Sequence[int]) -> Judged:
        """logits, dense (steps, V) before each of ids (steps,)."""
        own, exact = log_softmax(logits), log_softmax(dense)
        picked = own[np.arange(len(ids)), list(ids)]
        return cls(float(np.exp(-picked.mean())), float((np.exp(exact) * (exact - own)).sum(-1).mean()))


def _fed(rig: Rig, stream: Stream, ids: Sequence[int]) -> Array:
    return np.stack([rig.step({stream: token})[0] for token in ids[:-1]])


def quality(study: Study, dense: Rig, text: Text, ids: list[int], sizes: Sizes) -> None:
    """Perplexity, and divergence from dense attention, at equal budgets."""
    prompt, rest = ids[: text.prompt], ids[text.prompt :]
    rules: dict[str, chunks.Rule] = {
        "StreamingLLM": chunks.Recent(),
        "Quest, pages of 16": chunks.Bounds(),
        "random chunks": chunks.Random(study.seed),
        "landmarks over exact keys": chunks.Landmarks(),
        "the best chunks": chunks.Exact(),
    }
    stacks = {
        "ShadowKV": text.use(),
        "without outliers": text.use(sparse_budget=text.total, outlier_chunks=0),
        "keys after rotation": text.use(pre_rope="false"),
    }
    if not study.quick:
        stacks |= {f"rank {r}": text.use(rank=r) for r in (*RANKS, 192) if r != 48}
    found: dict[str, Judged] = {}
    with study.progress(f"quality at {text.prompt:,} tokens", 1 + len(rules) + len(stacks)) as step:
        with dense.stream(prompt) as trunk:
            dense.absorb(trunk)
            fork = dense.fork(trunk)
            exact = _fed(dense, fork, rest)
            dense.close(fork)
            found["dense"] = Judged.of(exact, exact, rest[1:])
            step()
            for name, rule in rules.items():
                fork = dense.fork(trunk)
                with chunks.choosing(dense, rule, text.sealed, text.total):
                    found[name] = Judged.of(_fed(dense, fork, rest), exact, rest[1:])
                dense.close(fork)
                step()
        for name, use in stacks.items():
            with Rig(use=(use,), context=len(ids) + 1) as rig, rig.stream(prompt) as stream:
                rig.absorb(stream)
                found[name] = Judged.of(_fed(rig, stream, rest), exact, rest[1:])
            step()
    study.table(
        f"{text.prompt:,} tokens, {text.total} of {text.sealed:,} attended to, {len(rest) - 1} tokens judged",
        ("", "perplexity", "divergence from dense"),
        [(name, j.perplexity, j.divergence) for name, j in found.items()],
    )
    own = found["ShadowKV"].divergence
    where = f"divergence at {text.prompt:,} tokens, "
    for name, must in (("without outliers", less_than), ("StreamingLLM", less_than), ("Quest, pages of 16", at_most)):
        other = found[name].divergence
        why = ""
        if name == "Quest, pages of 16" and "rank 192" in found:
            why = (
                f"means of chunks choose worse than bounds on this text: without low rank (192) it is still "
                f"{found['rank 192'].divergence:.3f}"
            )
        study.check(where + f"beside {name}", own, must(other, name), baseline=other, unit="nats", why=why)


# ---- what it costs in bytes and seconds


def cost(study: Study, ids: list[int], rounds: int) -> None:
    """Bytes that stay near, bytes that move, and seconds, at the default knobs."""
    prompt, rest = ids[:LONG], ids[LONG:]
    use = "shadowkv:rank=48,sparse_budget=512,outlier_chunks=12"
    with (
        Rig(context=len(ids) + 1) as plain,
        Rig(use=(use,), context=len(ids) + 1) as rig,
        plain.stream(prompt) as other,
        rig.stream(prompt) as stream,
    ):
        plain.absorb(other)
        rig.absorb(stream)
        replays = {}
        counted = rig.service.state["inside"].select.counted
        for which, own, its in (("dense", plain, other), ("shadowkv", rig, stream)):
            for token in rest[:8]:  # what buffers are filled with at first is not counted
                own.step({its: token})
            counted.chosen = counted.missed = 0
            replays[which] = watching.Recorded(own)
            with watching.inside(own, replays[which]):  # type: ignore[arg-type]
                for token in rest[8:-1]:
                    own.step({its: token})
        steps = len(rest) - 9
        _bytes(study, rig, stream, counted, steps)
        times = study.interleaved({n: r.again for n, r in replays.items()}, rounds, what="attention of decode steps")
    study.check(
        f"attention of a decode step at {LONG:,} tokens, rebuilding included",
        times.speedup("shadowkv", over="dense"),
        more_than(1.0),
        unit="x",
        claim="up to 3.04x throughput on an A100",
        headline=True,
    )
    study.table(
        f"milliseconds of attention per decode step at {LONG:,} tokens",
        ("", "milliseconds"),
        [(name, 1e3 * times.median(name) / steps) for name in replays],
    )


def _bytes(study: Study, rig: Rig, stream: Stream, counted: Any, steps: int) -> None:
    store = rig.service.state["kv"]
    full = stream.known * LAYERS * GROUPS * DIM * 2 * 2
    hot = store.hot_bytes(stream)
    study.check(
        f"bytes that stay near at {LONG:,} tokens, of those of bf16",
        hot / full,
        at_most(0.35),
        claim="about 1/7 at a width of 1,024",
        baseline=1.0,
    )
    hits = 100 * (1 - counted.missed / counted.chosen)
    study.check("chunks that were chosen for the token before too", hits, at_least(50.0), unit="%")
    moved = counted.missed / steps * CHUNK * DIM * 2
    study.table(
        f"bytes at {LONG:,} tokens",
        ("", "bytes"),
        [
            ("full, bf16", full),
            ("near: factors, landmarks, outliers, buffer, own output", hot),
            ("of these per stream, whatever its length", store.stream_bytes),
            ("at a distance: values", store.cold_bytes(stream)),
            ("values fetched per step", moved),
        ],
    )
    study.table(
        "milliseconds that fetching would take per step (computed)",
        ("link", "milliseconds"),
        [(name, 1e3 * moved / rate) for name, rate in LINKS.items()],
    )
