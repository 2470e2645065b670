"""Cache-aware Conformer: streamed equals offline, and what that buys over computing a buffer again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from diastole.assets import resolve
from diastole.bench.streaming import opened, streamed
from diastole.kernels.table import load, physical_cores
from diastole.nn.transducer import Transducer
from diastole.recipes import cache_aware_conformer as recipe
from diastole.recipes import spoken
from diastole.reproduce.conformer_twin import TWIN, about, alike, buffered, in_torch, seen
from diastole.reproduce.live_parts import carry, check_carried
from diastole.reproduce.must import at_most, equal_to
from diastole.reproduce.study import Study
from diastole.types import Array

PAPER = "Cache-aware Conformer: streaming speech recognition that computes nothing twice"

RATE, FRAME = spoken.RATE, spoken.FRAME
STREAMS = 50  # on one core
RECORDINGS, QUICK, TWINS = 400, 10, 80  # of error rates, of a quick look, and that the twin hears too
AT_ONCE = 16  # recordings that are encoded together
NEVER = np.array([1 << 40])  # frames of silence that end an utterance


class Heard(NamedTuple):
    """What came of the test's examples in one way."""

    texts: list[str]
    delays: list[float]  # seconds from a word's end to the chunk that says its last symbol


def run(study: Study) -> None:
    """Equality, error rates, compute, emission, and streams.

    Raises:
        UserError: the full-context twin is not trained yet, or otherwise than the model, and this is no quick look.
    """
    torch.set_num_threads(physical_cores())
    path = resolve("cache-aware-conformer")
    if not study.quick:
        alike(path, TWIN)
    _, test = spoken.corpora()
    rng = np.random.default_rng((study.seed, 7))
    examples = [test.example(rng) for _ in range(QUICK if study.quick else RECORDINGS)]
    model: Any = opened("cache-aware-conformer", load(1))
    net = in_torch(path)
    shape = model.encoder.shape
    study.note(
        f"{sum(p.numel() for p in net.parameters()):,} parameters; voices that were not trained with, one of them "
        "real; noise and rooms simulated. The words are the 148 of the training: numbers, letters, commands"
    )
    _equal(study, model, net, examples[: 4 if study.quick else 20])
    wrong = _errors(study, model, examples, shape.rights)
    if not study.quick:
        _twin(study, model, examples[:TWINS], {key: words[:TWINS] for key, words in wrong.items()})
    _compute(study, model)
    _real(study, model)
    _constant(study, model)
    check_carried(
        study, carry(model, STREAMS, 5 if study.quick else 30, {"latency_ms": 0}), "streams of 0 ms look-ahead"
    )
    widest = carry(model, STREAMS, 3 if study.quick else 10)
    study.note(f"{widest.at_real_time:.0f} streams on one core where chunks are of {widest.period * 1000:.0f} ms")


def spectra(model: Any, x: Array) -> Array:
    """(1, 8 T, bands) of a whole recording, filled up to whole frames."""
    mel = model.encoder.mel
    padded = np.zeros((1, mel.tail + -(-len(x) // FRAME) * FRAME), np.float32)
    padded[0, mel.tail : mel.tail + len(x)] = x
    found: Array = mel(padded)
    return found


def chunked(model: Any, x: Array, right: int) -> Array:
    """(B, T, d) of recordings (B, N), a chunk at a time with what is kept."""
    encoder = model.encoder
    state = {name: np.zeros((len(x), *spec.shape), spec.dtype) for name, spec in encoder.specs().items()}
    padded = np.zeros((len(x), -(-x.shape[1] // FRAME) * FRAME), np.float32)
    padded[:, : x.shape[1]] = x
    size = (right + 1) * FRAME
    return np.concatenate([encoder(padded[:, at : at + size], state) for at in range(0, padded.shape[1], size)], 1)


def read(transducer: Transducer, frames: Array, decoder: str) -> list[list[int]]:
    """Symbols of each frame."""
    state = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in transducer.specs().items()}
    reader = transducer.ctc if decoder == "ctc" else transducer.greedy
    return [[int(s) for s in row if s >= 0] for row in reader(frames[None], state, np.array([0]), NEVER)[0]]


def text_of(model: Any, symbols: Sequence[Sequence[int]]) -> str:
    """Words."""
    return " ".join("".join(model.symbols[s] for row in symbols for s in row).split())


def _equal(study: Study, model: Any, net: recipe.Net, examples: Sequence[spoken.Example]) -> None:
    """Streamed against the whole with its mask, for every chunk size."""
    worst, alike, total = 0.0, 0, 0
    rights = model.encoder.shape.rights
    with study.progress("streamed and offline", len(examples) * len(rights)) as step:
        for example in examples:
            for right in rights:
                with torch.no_grad():
                    offline = net.encode(torch.from_numpy(spectra(model, example.x)), right)[0].numpy()
                live = chunked(model, example.x[None], right)[0]
                worst = max(worst, float(np.abs(live - offline).max()))
                for decoder in ("ctc", "rnnt"):
                    total += 1
                    said = _streamed(model, example.x, right, decoder, [997] * (len(example.x) // 997))
                    alike += said == text_of(model, read(model.transducer, offline, decoder))
                step()
    study.check("largest difference of an encoder's number, all chunk sizes", worst, at_most(1e-4), claim="the same")
    study.check("texts of streams in odd pieces that are the offline text", alike / total, equal_to(1), baseline=total)


def _streamed(model: Any, x: Array, right: int, decoder: str, pieces: Sequence[int]) -> str:
    options = {"latency_ms": model.frame_ms * right, "decoder": decoder, "endpoint_ms": 0}
    told = streamed(model, x[:, None], pieces, options)
    return " ".join(str(t.reading.data["text"]) for t in told if t.reading.kind == "final")


def _hear(
    model: Any,
    transducer: Transducer,
    frames: Sequence[Array],
    examples: Sequence[spoken.Example],
    right: int,
    decoder: str,
) -> Heard:
    texts, delays = [], []
    for x, example in zip(frames, examples, strict=True):
        symbols = read(transducer, x, decoder)
        texts.append(text_of(model, symbols))
        delays += _delays(model, symbols, example, right)
    return Heard(texts, delays)


def _delays(model: Any, symbols: Sequence[Sequence[int]], example: spoken.Example, right: int) -> list[float]:
    """Of the words that are right, in order."""
    words: list[str] = []
    ends: list[float] = []
    for frame, row in enumerate(symbols):
        told = (frame // (right + 1) + 1) * (right + 1) * FRAME / RATE  # its chunk is complete
        for symbol in row:
            if model.symbols[symbol].startswith(" ") or not ends:
                words.append("")
                ends.append(told)
            words[-1] += model.symbols[symbol].strip()
            ends[-1] = told
    found = []
    for here, there, n in SequenceMatcher(a=words, b=example.text.split(), autojunk=False).get_matching_blocks():
        found += [ends[here + i] - example.spans[there + i][1] for i in range(n)]
    return found


def _ms(values: Sequence[float], share: float) -> float | str:
    return round(1000 * float(np.percentile(values, share))) if values else "none is right"


def _errors(
    study: Study, model: Any, examples: Sequence[spoken.Example], rights: Sequence[int]
) -> dict[tuple[int, str], Array]:
    """Of every chunk size and reader the words of each recording that are wrong."""
    meant = [e.text for e in examples]
    sound = np.stack([e.x for e in examples])  # all are as long
    found: dict[tuple[int, str], float] = {}
    wrong: dict[tuple[int, str], Array] = {}
    rows: list[tuple[float | str, ...]] = []
    parts = range(0, len(sound), AT_ONCE)
    with study.progress("error rates", len(rights) * len(parts)) as step:
        for right in sorted(rights):
            frames: list[Array] = []
            for at in parts:
                frames += list(chunked(model, sound[at : at + AT_ONCE], right))
                step()
            for decoder in ("ctc", "rnnt"):
                heard = _hear(model, model.transducer, frames, examples, right, decoder)
                found[right, decoder] = spoken.rate(heard.texts, meant)
                texts = zip(heard.texts, meant, strict=True)
                wrong[right, decoder] = np.array([spoken.distance(a.split(), b.split()) for a, b in texts])
                rows.append(
                    (
                        model.frame_ms * right, decoder, round(100 * found[right, decoder], 2),
                        _ms(heard.delays, 50), _ms(heard.delays, 90),
                    )
                )  # fmt: skip
    study.table(
        f"word error rate of {len(examples)} recordings, and how long after its end a right word is complete",
        ("look-ahead ms", "reader", "WER %", "p50 ms", "p90 ms"),
        rows,
    )
    for decoder in ("ctc", "rnnt"):
        rates = [100 * found[right, decoder] for right in sorted(rights)]
        rises = max(b - a for a, b in pairwise(rates))
        study.check(
            f"largest rise of the error rate with more look-ahead, {decoder}",
            rises,
            at_most(0.0 if not study.quick else 5.0),
            unit="%",
            claim="falls with look-ahead",
            why=_chance({right: wrong[right, decoder] for right in rights}, meant, model.frame_ms) if rises > 0 else "",
        )
        x = [float(model.frame_ms * right) for right in sorted(rights)]
        study.curve("word error rate", x, rates, label=decoder, xlabel="look-ahead, ms", ylabel="WER, %")
    return wrong


def _chance(wrong: dict[int, Array], meant: Sequence[str], ms: int) -> str:
    """How far the largest rise is from none. wrong: words of each recording, by look-ahead."""
    words = sum(len(m.split()) for m in meant)
    here, there = max(pairwise(sorted(wrong)), key=lambda pair: int((wrong[pair[1]] - wrong[pair[0]]).sum()))
    more = wrong[there] - wrong[here]
    error = 100 * float(more.std(ddof=1)) * len(more) ** 0.5 / words
    return (
        f"{more.sum()} words of {words} from {ms * here} to {ms * there} ms: {100 * more.sum() / words:.2f} points, "
        f"with a standard error of {error:.2f} over the {len(more)} recordings"
    )


def _twin(study: Study, model: Any, examples: Sequence[spoken.Example], wrong: Mapping[tuple[int, str], Array]) -> None:
    """A twin that saw everything in training, streamed over a buffer that is computed again with every chunk."""
    net = in_torch(TWIN)
    transducer = Transducer(load(1), {n: x.numpy() for n, x in net.state_dict().items()})
    meant, rows = [e.text for e in examples], []
    words = sum(len(text.split()) for text in meant)
    rights = sorted(model.encoder.shape.rights)
    left = model.encoder.shape.left
    offline = [seen(net, spectra(model, e.x)) for e in examples]
    whole = {d: spoken.rate(_hear(model, transducer, offline, examples, 0, d).texts, meant) for d in ("ctc", "rnnt")}
    with study.progress("the twin over a buffer", len(rights) * len(examples)) as step:
        frames: dict[int, list[Array]] = {right: [] for right in rights}
        for right in rights:
            for example in examples:
                frames[right].append(buffered(net, spectra(model, example.x), left, right))
                step()
    for right in rights:
        for decoder in ("ctc", "rnnt"):
            here = int(wrong[right, decoder].sum()) / words
            rate = spoken.rate(_hear(model, transducer, frames[right], examples, right, decoder).texts, meant)
            rows.append((model.frame_ms * right, decoder, round(100 * here, 2), round(100 * rate, 2)))
            if decoder == "rnnt":
                study.check(
                    f"WER over the buffered twin's, {model.frame_ms * right} ms",
                    here / max(rate, 1e-9),
                    at_most(1.0),
                    unit="x",
                    claim="lower at equal latency",
                )
    study.table(
        f"word error rate % of {len(examples)} recordings, and of the twin over a buffer",
        ("look-ahead ms", "reader", "here", "twin"),
        rows,
    )
    seconds = about(TWIN)["seconds"]
    study.note(
        f"the twin: the same training ({seconds} s) with all of each recording to see; offline its error "
        f"rates are {100 * whole['ctc']:.1f}% (ctc) and {100 * whole['rnnt']:.1f}% (rnnt)"
    )


def _compute(study: Study, model: Any) -> None:
    """Milliseconds of a second of sound: with what is kept, and over the whole buffer again."""
    encoder, left = model.encoder, model.encoder.shape.left
    rng = np.random.default_rng(1)
    rows = []
    worst = 0.0
    for right in sorted(encoder.shape.rights):
        chunk = right + 1
        state = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in encoder.specs().items()}
        new = 0.1 * rng.normal(size=(1, chunk * FRAME)).astype(np.float32)
        both = 0.1 * rng.normal(size=(1, (left + chunk) * FRAME)).astype(np.float32)
        kept, again = [], []
        for _ in range(5 if study.quick else 15):
            began = time.perf_counter()
            encoder(new, state)
            middle = time.perf_counter()
            # The same operators, over the buffer in chunks of this size from nothing: attention costs what it costs
            # with this look-back, so the buffer is not made dearer than it is.
            fresh = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in encoder.specs().items()}
            for at in range(0, both.shape[1], (max(encoder.shape.rights) + 1) * FRAME):
                encoder(both[:, at : at + (max(encoder.shape.rights) + 1) * FRAME], fresh)
            kept.append(middle - began)
            again.append(time.perf_counter() - middle)
        seconds = chunk * FRAME / RATE
        here, there = (1000 * float(np.median(t)) / seconds for t in (kept, again))
        work = chunk / (left + chunk)
        worst = max(worst, work)
        rows.append((model.frame_ms * right, round(here, 2), round(there, 2), round(here / there, 3), round(work, 3)))
    study.table(
        "milliseconds of one core for a second of sound, one stream",
        ("look-ahead ms", "with caches", "buffer again", "ratio", "frames computed, ratio"),
        rows,
    )
    study.check("time with caches over the buffer's, worst", max(float(r[3]) for r in rows), at_most(0.5), unit="x")
    study.check("frames computed over the buffer's, worst", worst, at_most(0.5), unit="x")


def _real(study: Study, model: Any) -> None:
    """Voices of people, as far as the words are known ones."""
    rows, said, meant = [], [], []
    for name, x, text in spoken.held_out():
        heard = _streamed(model, x, max(model.encoder.shape.rights), "rnnt", [4000] * (len(x) // 4000))
        rows.append((name, text, heard))
        said.append(heard)
        meant.append(text)
    study.table("recordings of people (pocketsphinx-testdata)", ("file", "said", "heard"), rows)
    study.note(f"word error rate of these {len(rows)}: {100 * spoken.rate(said, meant):.0f}% (not gated)")


def _constant(study: Study, model: Any) -> None:
    """What a stream of ten minutes holds."""
    from diastole.bench.streaming import NAME, serving
    from diastole.live import Chunk, LiveParams
    from diastole.types import Request

    engine, service = serving(model, 1)
    engine.add(Request("s", NAME, None, LiveParams({"endpoint_ms": 800})))
    second = 0.05 * np.random.default_rng(2).normal(size=(RATE, 1)).astype(np.float32)
    held = []
    for _ in range(60 if study.quick else 600):
        engine.feed("s", Chunk(second))
        while engine.step():
            pass
        live = service.ledger.running[0].own
        cells = sum(a.nbytes for a in service.ledger.pools["cell"].arrays.values())  # type: ignore[attr-defined]
        held.append(cells + live.intake.waiting.nbytes + 100 * len(live.record.letters))
    growth = max(held[len(held) // 2 :]) / max(held[: len(held) // 2])
    study.check(f"state of a stream after {len(held)} s over that before", growth, at_most(1.01), unit="x")
