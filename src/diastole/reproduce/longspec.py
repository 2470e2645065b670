"""LongSpec on SmolLM2-135M: does a draft that never grows still pay when the context is long?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from diastole.bench.drafts import PLAIN, Bench, Cell
from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.kernels.table import Ops
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes import longspec as recipe
from diastole.recipes.own_text import Texts, generate
from diastole.reproduce.aded import facts_of
from diastole.reproduce.must import at_least, at_most, equal_to, less_than, more_than
from diastole.reproduce.study import Study
from diastole.types import Array
from diastole.weights.calibration import Calibration, about

PAPER = (
    "LongSpec: Long-Context Lossless Speculative Decoding with Efficient Drafting and Verification (arXiv 2502.17421)"
)

CHAIN = "1+1+1+1"
SHAPES = {
    "chain of 2": "1+1",
    "chain of 4": CHAIN,
    "tree of 8": "3+2+2+1",
    "tree of 16": "4+4+4+4",
    "tree of 32": "8+8+8+8",
}
ABLATED = {"as in the paper": {}, "no anchor offset": {"anchors": False}, "no lag": {"lag": False}}
HEADS, GROUPS, DIM = 9, 3, 64  # of the synthetic comparison


def run(study: Study) -> None:
    lengths, texts, tokens = ((512, 2_000), 1, 32) if study.quick else ((512, 2_000, 4_000, 7_000), 4, 128)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    shapes = {"chain of 4": CHAIN} if study.quick else SHAPES
    sides = {name: [f"longspec:tree_shape={s}", f"fixed:k={_nodes(s)}"] for name, s in shapes.items()}
    sides |= {"ngram": ["ngram:k=4", "fixed:k=4"], "with smartspec": [f"longspec:tree_shape={CHAIN}", "smartspec"]}
    with ExitStack() as stack:
        engines = {PLAIN: stack.enter_context(LLM(max_streams=1, context=8_192))}
        for name, use in sides.items():
            engines[name] = stack.enter_context(LLM(use=tuple(use), max_streams=1, context=8_192))
        cells = _cells(study, engines, lengths, texts, params)
        held = {n: _held(engines["chain of 4"], n) for n in lengths}
    _judge(study, cells, held)
    if not study.quick:
        _ablations(study, lengths, texts, params)
    _split(study)


def _nodes(shape: str) -> int:
    return sum(int(n) for n in shape.split("+"))


def _cells(
    study: Study, engines: Mapping[str, LLM], lengths: Sequence[int], texts: int, params: SamplingParams
) -> dict[int, Cell]:
    corpus = Corpus.of(engines[PLAIN].voice.tokenizer)
    rng = Random(study.seed)
    with study.progress("contexts", len(lengths) * texts * len(engines)) as told:
        bench = Bench(engines, params)
        return {n: bench.cell(str(n), [corpus.cut(n, rng) for _ in range(texts)], 1, 1, told) for n in lengths}


def _held(llm: LLM, n: int) -> int:
    """Bytes that the draft keeps of a stream whose context is so long."""
    service = llm.engine.services[0]
    drafter: Any = service.loop.drafter  # type: ignore[attr-defined]
    most = 0
    prompt = [100 + i % 1000 for i in range(n)]
    for _ in llm.stream(prompt, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)):
        most = max(most, drafter.pool.used)
    return int(most * drafter.store.bytes_per_token * 64)


def _judge(study: Study, cells: Mapping[int, Cell], held: Mapping[int, int]) -> None:
    first, last = min(cells), max(cells)
    different = sum(s.different for cell in cells.values() for s in cell.sides.values())
    study.check("greedy texts that differ", different, equal_to(0), claim="lossless")
    short, long = (cells[n].sides["chain of 4"].per_step for n in (first, last))
    study.check(
        f"chain of 4: tokens per step at {last} tokens",
        long,
        at_least(0.9 * short, f"0.9 x at {first}"),
        baseline=short,
        claim="positions that were trained far apart hold far out",
    )
    study.check(
        f"bytes that the draft holds at {last} tokens over {first}",
        held[last] / max(held[first], 1),
        at_most(1.13),
        unit="x",
        claim="constant",
    )
    own = [name for name in cells[last].sides if name.startswith(("chain", "tree"))]
    best = max(own, key=cells[last].speedup)
    study.check(
        f"decoding at {last} tokens, {best}: times as fast as plain",
        cells[last].speedup(best),
        more_than(1.0),
        unit="x",
        claim="up to 3.26x",
        headline=True,
        why=f"a step brings {cells[last].sides[best].per_step:.2f} tokens; a block that was trained for minutes is "
        "right too seldom for what guessing takes, one by one and from Python",
    )
    study.table(
        "by context",
        ("tokens", "side", "times as fast", "tokens per step", "right of guesses"),
        [
            (n, name, cell.speedup(name), side.per_step, side.rate)
            for n, cell in cells.items()
            for name, side in cell.sides.items()
        ],
    )
    for name in (s for s in cells[last].sides if s != PLAIN):
        study.curve(
            "times as fast as plain decoding", [*cells], [cell.speedup(name) for cell in cells.values()],
            label=name, xlabel="tokens of the context", ylabel="times",
        )  # fmt: skip


def _ablations(study: Study, lengths: Sequence[int], texts: int, params: SamplingParams) -> None:
    """Blocks trained in this run, all alike but for one thing, for fewer steps than the shipped one."""
    steps, said = 350, 150_000
    found: dict[str, tuple[float, float]] = {}
    ends = (min(lengths), max(lengths))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        plain = stack.enter_context(LLM(max_streams=48))
        facts = facts_of(plain)
        with study.progress("the model's own text", said // 250) as told:
            own = generate(plain, facts.fingerprint, said, study.seed + 1, lambda n: told())
        for name, change in ABLATED.items():
            tensors = _trained(study, own, name, recipe.Plan(steps, **change))
            path = folder / name.replace(" ", "-")
            Calibration(tensors, about("longspec", facts)).write(path)
            with ExitStack() as inner:
                engines = {PLAIN: plain}
                use = (f"longspec:draft={path},tree_shape={CHAIN}", "fixed:k=4")
                engines[name] = inner.enter_context(LLM(use=use, max_streams=1, context=8_192))
                cells = _cells(study, engines, ends, texts, params)
            found[name] = tuple(cells[n].sides[name].per_step for n in ends)  # type: ignore[assignment]
    study.table(
        f"tokens per step of chains of 4, blocks trained for {steps} steps each",
        ("trained", *(f"at {n}" for n in ends)),
        [(name, *values) for name, values in found.items()],
    )
    (near, far), (near_without, far_without) = found["as in the paper"], found["no anchor offset"]
    study.check(
        f"tokens per step at {ends[1]} beside {ends[0]}, without anchor offset",
        far_without / near_without,
        less_than(far / near, "with it"),
        baseline=far / near,
        claim="the offset is what carries far out",
        why="blocks trained so shortly guess from what is near, which both learn, and no offset is missed",
    )


def _trained(study: Study, own: Texts, name: str, plan: recipe.Plan) -> Mapping[str, Array]:
    with Rig() as rig, study.progress(f"training: {name}", plan.steps) as told:
        tensors, _ = recipe.train(rig, own, plan, lambda p: told())
    return tensors


def _split(study: Study) -> None:
    """Attention of a tree's rows over a long context, in one layer: the context once for all rows with the tree's own
    part merged by log-sum-exp, beside every branch as a stream of its own."""
    n, rows, branches = (2_000 if study.quick else 7_000), 16, 4
    from diastole.kernels.table import load

    ops = load()
    rng = np.random.default_rng(study.seed)
    pages = -(-n // 64)
    buf = ops.alloc(pages * GROUPS * ops.kv_page_bytes("f32", DIM)).reshape(pages, GROUPS, -1)
    k, v = rng.normal(size=(2, n, GROUPS, DIM)).astype(np.float32)
    ops.kv_write(buf, "f32", np.arange(n), k, v)
    q = rng.normal(size=(rows, HEADS, DIM)).astype(np.float32)
    near_k, near_v = rng.normal(size=(2, rows, GROUPS, DIM)).astype(np.float32)
    mask = np.tril(rng.random((rows, rows)) < 0.5) | np.eye(rows, dtype=bool)
    split = _merged(ops, buf, n, pages, q, near_k, near_v, mask)
    exact = _masked(q, k, v, near_k, near_v, mask)
    study.check(
        "split attention beside dense masked attention, largest difference",
        float(np.abs(split - exact).max()),
        at_most(1e-5),
    )

    def streams() -> None:
        tables = np.tile(np.arange(pages, dtype=np.int32), (branches, 1))
        starts = np.arange(0, rows + 1, rows // branches, dtype=np.int32)
        hi = np.full(rows, n, np.int32)
        ops.attend(q, buf, "f32", tables, starts, np.zeros(rows, np.int32), hi, DIM**-0.5, np.empty_like(q))

    once = _median(lambda: _merged(ops, buf, n, pages, q, near_k, near_v, mask))
    each = _median(streams)
    study.check(
        f"attention of {rows} rows in {branches} branches at {n}: time split beside branch by branch",
        once / each, less_than(1.0), unit="x", claim="the long part is read once",
        why="the tree's own part and the merging are numpy's here, and branches share a core's cache",
    )  # fmt: skip


def _merged(ops: Ops, buf: Array, n: int, pages: int, q: Array, k: Array, v: Array, mask: Array) -> Array:
    out, lse = np.empty_like(q), np.empty(q.shape[:2], np.float32)
    rows = len(q)
    tables, starts = np.arange(pages, dtype=np.int32)[None], np.array([0, rows], np.int32)
    ops.attend(q, buf, "f32", tables, starts, np.zeros(rows, np.int32), np.full(rows, n, np.int32), DIM**-0.5, out, lse)
    near = np.einsum("tgsd,mgd->tgsm", q.reshape(rows, GROUPS, -1, DIM), k).reshape(rows, HEADS, rows) * np.float32(
        DIM**-0.5
    )
    near = np.where(mask[:, None], near, -np.inf)
    most = np.maximum(near.max(-1), lse)
    weights, before = np.exp(near - most[..., None]), np.exp(lse - most)
    own = np.einsum("tgsm,mgd->tgsd", weights.reshape(rows, GROUPS, -1, rows), v).reshape(q.shape)
    merged: Array = (own + out * before[..., None]) / (weights.sum(-1) + before)[..., None]
    return merged


def _masked(q: Array, k: Array, v: Array, near_k: Array, near_v: Array, mask: Array) -> Array:
    """In float64, all keys at once."""
    rows, n = len(q), len(k)
    share = HEADS // GROUPS
    keys, values = (np.concatenate(x).astype(np.float64).repeat(share, 1) for x in ((k, near_k), (v, near_v)))
    scores = np.einsum("thd,nhd->thn", q.astype(np.float64), keys) * DIM**-0.5
    scores[:, :, n:] = np.where(mask[:, None], scores[:, :, n:], -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: Array = np.einsum("thn,nhd->thd", weights / weights.sum(-1, keepdims=True), values)
    assert out.shape == (rows, HEADS, DIM)
    return out


def _median(work: Any) -> float:
    took = []
    for _ in range(15):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
