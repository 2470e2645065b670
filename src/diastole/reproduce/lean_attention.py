"""Lean Attention on synthetic contexts: do equal shares of one list end sooner than heads dealt out to workers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from diastole.bench.geometry import SMOLLM2, Geometry, Synthetic
from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.kernels.table import Ops, compiled, load
from diastole.reproduce.lean_model import model
from diastole.reproduce.must import at_least, at_most, equal_to
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread, Timings
from diastole.state.kv import PagedKV
from diastole.types import Array, UserError

PAPER = "Lean Attention: Hardware-Aware Scalable Attention for the Decode-Phase of Transformers (arXiv 2405.10480)"

TILE = 512  # tokens of a piece, as the engine takes them
TILES = (64, 128, 256, 512)
COLD = (
    24 << 20
)  # bytes of all layers together, where 30 have as many: what a layer needs is then not in the near caches
GAIN = 1.25  # times as fast as one head per worker, of a stream that is alone
READ = 96 << 20  # bytes that one turn reads at least: some milliseconds
CALLS = 24  # of one layer's attention, for who did what
ONE_HEAD = Geometry("synthetic-one-head", 1, 1, 1, 64)


@dataclass(frozen=True, slots=True)
class Way:
    """A schedule with its number of parts."""

    schedule: str
    parts: int = 1


LEAN, PLAIN = "lean", "one head per worker"
RIVALS = {PLAIN: Way("heads"), "queue of heads": Way("queue")} | {f"{s} parts each": Way("fixed", s) for s in (2, 4, 8)}
WAYS = {LEAN: Way("lean"), "lean, nobody helps": Way("shares")} | RIVALS


class Field:
    """Contexts that every schedule attends to, layer after layer."""

    def __init__(self, ops: Ops, geometry: Geometry, lengths: Sequence[int], fmt: str = "bf16") -> None:
        self.ops, self.lengths, self.fmt = ops, tuple(lengths), fmt
        each = sum(lengths) * geometry.kv_heads * geometry.head_dim * 4  # bytes of a layer in bfloat16
        self.layers = min(geometry.layers, -(-COLD // each))
        self.times = -(-READ // (each * self.layers))
        store = PagedKV(fmt)  # type: ignore[arg-type]
        self.field = Synthetic(replace(geometry, layers=self.layers), store, ops, lengths)
        assert store.buffers is not None
        self.pages = store.buffers
        self.q, self.scale = self.field.queries(), geometry.head_dim**-0.5
        self.out = np.empty_like(self.q)

    def attend(self, way: Way, tile: int = TILE, workers: int = 0, spent: Array | None = None, layer: int = 0) -> Array:
        """One layer's attention; the array is used again by the next call."""
        f = self.field
        self.ops.attend_by(
            self.q, self.pages[layer], self.fmt, f.tables, f.starts, f.lo, f.hi, self.scale, self.out, None,
            way.schedule, tile, workers, way.parts, spent,
        )  # fmt: skip
        return self.out

    def turn(self, way: Way, tile: int = TILE) -> None:
        """All layers, some times."""
        for _ in range(self.times):
            for layer in range(self.layers):
                self.attend(way, tile, layer=layer)

    @property
    def tiles(self) -> int:
        return sum(-(-n // TILE) for n in self.lengths) * self.field.geometry.kv_heads

    def spent(self, way: Way, workers: int) -> Array:
        """Of one layer's attention after another: (calls, workers, 3), see ``Ops.attend_by``."""
        found = np.zeros((max(CALLS, self.layers), workers, 3))
        for i in range(len(found)):
            self.attend(way, spent=found[i], layer=i % self.layers)
        return found


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly a schedule spreads work: medians over calls."""

    imbalance: float  # the longest worker's time beside the mean
    lost: float  # share of all workers' time until the last is done that goes to merging and to having nothing to do
    merged: float  # the part of it that goes to merging
    busy: float  # seconds of all workers

    @classmethod
    def of(cls, spent: Array) -> Balance:
        seconds, merging = spent[..., 0], spent[..., 1].sum(1)
        most, workers = seconds.max(1), seconds.shape[1]
        idle, until = workers * most - seconds.sum(1), workers * most
        figures = (most / seconds.mean(1), (merging + idle) / until, merging / until, seconds.sum(1))
        return cls(*(float(np.median(x)) for x in figures))


def run(study: Study) -> None:
    if compiled() is None:
        raise UserError("this reproduction compares schedules of the native operators, which are not built")
    ops = load()
    workers = int(compiled().threads())  # type: ignore[union-attr]
    study.note(f"synthetic keys and values in the geometry of SmolLM2-135M; {workers} workers on as many threads")
    study.note("pages of 64 tokens only, so pieces are multiples of 64; all schedules run the same code on a piece")
    study.note("nobody waits inside: who comes last to a row merges its parts, so waiting is time at the end only")
    _exact(study, ops)
    _grid(study, ops, workers)
    _tiles(study, ops)
    _half_a_million(study, ops)
    _engine(study)
    model(study)


def _exact(study: Study, ops: Ops) -> None:
    """In float32, every schedule on pieces of every size; bits for any number of workers."""
    lengths = (1_500, 200, 90) if study.quick else (7_000, 200, 150, 90)
    field = Field(ops, replace(SMOLLM2, layers=1), lengths, "f32")
    want = _softmax(field)
    worst, differ = 0.0, 0
    for tile in TILES:
        first = field.attend(WAYS[LEAN], tile, workers=1).copy()
        for way in WAYS.values():
            for workers in (1, 2, 3, 5, 16):
                got = field.attend(way, tile, workers)
                differ += int((got.view(np.uint32) != first.view(np.uint32)).sum())
                worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    study.check("error of any schedule and piece, float32", worst, at_most(2e-6), claim="exact attention")
    study.check("numbers that differ in any bit, 1 to 16 workers", differ, equal_to(0), claim="none is promised")


def _softmax(field: Field) -> Array:
    """In float64 over the rows as they are stored."""
    f, want = field.field, np.empty(field.q.shape)
    group = field.q.shape[1] // f.geometry.kv_heads
    for i, n in enumerate(field.lengths):
        at = np.arange(n)
        k, v = f.store.read(0, f.tables[i, at // 64].astype(np.int64) * 64 + at % 64)
        for h in range(field.q.shape[1]):
            scores = k[:, h // group].astype(np.float64) @ field.q[i, h].astype(np.float64) * field.scale
            weights = np.exp(scores - scores.max())
            want[i, h] = weights @ v[:, h // group] / weights.sum()
    return want


def _contexts(quick: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Batches of equal contexts, and of such that fall as 1, 1/2, 1/3 and so on."""
    batches, lengths = ((1, 3, 8), (1_024, 7_000)) if quick else ((1, 2, 3, 4, 8), (256, 1_024, 4_096, 7_000))
    found = []
    for b in batches:
        for n in lengths:
            found.append((f"{b} x {n}", (n,) * b))
            if b > 1:
                found.append((f"{b} from {n}, Zipf", tuple(max(n // (i + 1), 16) for i in range(b))))
    return [*found, ("7000, 200, 150, 90", (7_000, 200, 150, 90))]


def _grid(study: Study, ops: Ops, workers: int) -> None:
    rounds = 5 if study.quick else 31
    seconds: list[Sequence[float | str]] = []
    uneven: list[Sequence[float | str]] = []
    behind: dict[str, Spread] = {}
    alone: dict[int, tuple[Spread, str]] = {}
    balances: dict[str, tuple[int, Balance, Balance]] = {}
    clearly = 0
    for name, lengths in _contexts(study.quick):
        field = Field(ops, SMOLLM2, lengths)
        times = study.interleaved(
            {way: partial(field.turn, WAYS[way]) for way in WAYS}, rounds, what=f"attention, {name}"
        )
        behind[name] = max((times.speedup(rival, over=LEAN) for rival in RIVALS), key=float)
        clearly += any(_quarter(times, rival) > 1.02 for rival in RIVALS)
        spent = {way: Balance.of(field.spent(WAYS[way], workers)) for way in WAYS}
        if len(lengths) == 1:
            gain = times.speedup(LEAN, over=PLAIN)
            alone[lengths[0]] = gain, _at_best(lengths[0], gain, spent[LEAN], spent[PLAIN])
        balances[name] = field.tiles, spent[LEAN], spent["queue of heads"]
        lean = times.median(LEAN)
        calls = field.times * field.layers
        seconds.append((name, field.tiles, 1e6 * lean / calls, *(times.median(way) / lean for way in WAYS)))
        uneven.append((name, field.tiles, *(spent[way].imbalance for way in WAYS)))
    study.table("time beside lean", ("contexts", "pieces", "lean, us a layer", *WAYS), seconds)
    study.table("the longest worker's time beside the mean", ("contexts", "pieces", *WAYS), uneven)
    study.note(
        "a worker that the system keeps from running is helped, which counts as imbalance: measure on a quiet machine"
    )
    for n, (gain, why) in sorted(alone.items(), reverse=True):
        _alone(study, n, gain, why)
    cell = max(behind, key=lambda c: float(behind[c]))
    study.check(
        f"time beside the best rival's, worst of {len(behind)} batches ({cell})",
        behind[cell],
        at_most(1.02),
        unit="x",
        claim="1.73x as fast as FlashDecoding",
        why="where the best rival's shares are as equal, what is left is the scatter of measuring",
    )
    study.note(f"batches in which some rival is 2% ahead in three of four rounds: {clearly}")
    _balance(study, balances)


def _quarter(times: Timings, rival: str) -> float:
    """Time beside a rival's in the best quarter of rounds, its worst."""
    return float(np.quantile(np.divide(times.seconds[LEAN], times.seconds[rival]), 0.25))


def _at_best(n: int, gain: Spread, lean: Balance, plain: Balance) -> str:
    """Why a stream that is alone gains less than it must, from who did how much."""
    if float(gain) >= GAIN:
        return ""
    if n <= TILE:
        return f"{n} tokens of a head are one piece, and three pieces on two workers are 2 : 1"
    if n <= 2 * TILE:
        return "all of it takes some 20 us, of which planning and meeting are a part"
    return (
        f"with heads the longest worker has {plain.imbalance:.2f} times the mean, with pieces {lean.imbalance:.2f}, "
        f"which is {plain.imbalance / lean.imbalance:.2f}x at best; with pieces the workers are busy for "
        f"{lean.busy / plain.busy:.2f} times as long, since none is ever alone with caches and memory"
    )


def _alone(study: Study, n: int, gain: Spread, why: str) -> None:
    study.check(
        f"batch 1, {n} tokens: times as fast as one head per worker",
        gain,
        at_least(GAIN),
        unit="x",
        claim="2.6x on average on a GPU",
        headline=n == 7_000,
        why=why,
    )
    if n <= TILE:
        study.check(f"batch 1, {n} tokens: not slower", gain, at_least(0.98), unit="x", fallback=True)


def _balance(study: Study, balances: dict[str, tuple[int, Balance, Balance]]) -> None:
    large = {name: (lean, queue) for name, (tiles, lean, queue) in balances.items() if tiles >= 32}
    worst = max(large, key=lambda c: large[c][0].imbalance)
    study.check(
        f"longest worker beside the mean, from 32 pieces on, worst batch ({worst})",
        large[worst][0].imbalance,
        at_most(1.03),
        claim="about 100% occupancy",
        baseline=max(queue.imbalance for _, queue in large.values()),
    )
    over = {name: lean.imbalance - queue.imbalance for name, (lean, queue) in large.items()}
    worst = max(over, key=lambda c: over[c])
    study.check(
        f"the same less the queue's, worst batch ({worst})",
        over[worst],
        at_most(0.0),
        why="where heads divide evenly among workers both are even, and what differs is the scatter of measuring",
    )
    worst = max(large, key=lambda c: large[c][0].lost)
    lost, merged = 100 * large[worst][0].lost, 100 * large[worst][0].merged
    study.check(
        f"time for merging and waiting, worst batch ({worst})",
        lost,
        at_most(3.0),
        unit="%",
        why=f"merging is {merged:.1f} % of it, waiting {lost - merged:.1f} %" if lost > 3 else "",
    )


def _tiles(study: Study, ops: Ops) -> None:
    """What smaller pieces cost and bring."""
    batches = ((300,), (600,), (1_024,), (7_000,), (7_000, 200, 150, 90))
    rows: list[Sequence[float | str]] = []
    for lengths in batches[1:4] if study.quick else batches:
        field = Field(ops, SMOLLM2, lengths)
        work = {str(tile): partial(field.turn, WAYS[LEAN], tile) for tile in TILES}
        work[PLAIN] = partial(field.turn, WAYS[PLAIN], TILE)
        times = study.interleaved(work, 5 if study.quick else 21, what="sizes of pieces")
        rows.append((", ".join(map(str, lengths)), *(times.median(name) / times.median(str(TILE)) for name in work)))
    study.table(
        f"lean with pieces of other sizes, time beside {TILE}", ("contexts", *map(str, TILES), f"{PLAIN}, {TILE}"), rows
    )


def _half_a_million(study: Study, ops: Ops) -> None:
    n = 1 << 16 if study.quick else 1 << 19
    field = Field(ops, ONE_HEAD, (n,))
    times = study.interleaved({way: partial(field.turn, WAYS[way]) for way in WAYS}, 5 if study.quick else 15)
    best = max((times.speedup(rival, over=LEAN) for rival in RIVALS), key=float)
    study.note(f"one head over {n:,} tokens: {field.field.bytes / 2**20:.0f} MiB of bfloat16")
    study.check(
        f"one head, {n:,} tokens: times as fast as one worker",
        times.speedup(LEAN, over=PLAIN),
        at_least(1.25),
        unit="x",
        claim="up to 8.33x at 512k",
    )
    study.check(f"one head, {n:,} tokens: time beside the best rival's", best, at_most(1.02), unit="x")
    exact = Field(ops, ONE_HEAD, (n,), "f32")
    got, want = exact.attend(WAYS[LEAN]), _softmax(exact)
    study.check(
        f"one head, {n:,} tokens: error, float32",
        float(np.linalg.norm(got - want) / np.linalg.norm(want)),
        at_most(2e-6),
    )


def _engine(study: Study) -> None:
    """Whole decode steps of the embedded model, block by block, with nothing but the schedule changed."""
    n, steps = (2_000, 4) if study.quick else (7_000, 8)
    with Rig(use=("lean-attention",), context=n + 200, streams=2) as rig:
        kernel = rig.service.state["inside"].kernel  # whose schedule no knob sets: users have no use for the others
        ids = Corpus.of(rig.tokenizer, "code").ids[:n]
        logits: dict[str, Array] = {}
        with rig.stream(ids) as stream:
            rig.absorb(stream)

            def decode(schedule: str) -> None:
                kernel.schedule = schedule
                twin = rig.fork(stream)
                for _ in range(steps):
                    logits[schedule] = rig.step({twin: int(ids[0])})
                rig.close(twin)

            work = {name: partial(decode, name) for name in ("lean", "heads", "queue")}
            times = study.interleaved(work, 3 if study.quick else 15, what="decode steps")
    differ = sum(int((logits["lean"].view(np.uint32) != x.view(np.uint32)).sum()) for x in logits.values())
    study.check("logits that differ in any bit between schedules", differ, equal_to(0))
    study.table(
        f"decode steps at {n} tokens, batch 1",
        ("schedule", "tokens per second"),
        [(name, steps / times.median(name)) for name in work],
    )
    study.check(
        f"decode steps at {n} tokens beside one head per worker",
        times.speedup("lean", over="heads"),
        at_least(1.0),
        unit="x",
    )
