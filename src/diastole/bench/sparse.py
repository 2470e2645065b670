"""``diastole bench sparse``: what attention costs in one decode step over a synthetic context, dense and by techniques.

Keys, values and queries are random numbers in the geometry of a real model, so this tells about time and bytes alone.
Everything that a technique does between the projections of a layer is in the measured time: storing the new row, its
companions, choosing, attending, and the Python around it where the engine has it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from diastole import registry
from diastole.assets import resolve
from diastole.assets.models import open_model
from diastole.bench.geometry import SMOLLM2, Synthetic
from diastole.engine.assemble import store
from diastole.kernels.table import Ops
from diastole.nn.arena import Arena
from diastole.nn.inside import Inside
from diastole.nn.rope import rope_table
from diastole.params import SamplingParams
from diastole.slots import Facts, View
from diastole.state.pages import PAGE
from diastole.types import Batch, Grant, Request, Stream, UserError

MOST_BYTES = 8 * 2**30  # of one stack's state


class Attending:
    """One stream of ``n`` random tokens that decodes, layer by layer, through a stack of techniques."""

    def __init__(self, use: Sequence[str], n: int, ops: Ops, seed: int = 0) -> None:
        stack = registry.build(use, {}, facts(ops, 2 * n))
        kv = store(stack, "auto")
        if kv.rooms is not None:
            message = f"{stack.owners['kv']} changes rows as a stream goes on, and here a context is there at once"
            raise UserError(f"{message}: ask diastole bench longcontext or compare", param="use")
        self._field = Synthetic(SMOLLM2, kv, ops, (n,), seed, MOST_BYTES, PAGE)
        self.bytes_per_token = kv.bytes_per_token
        (lease,) = self._field.leases
        request = Request("synthetic", "synthetic", (), SamplingParams())
        self._stream = Stream(request, 0, known=n, done=n, given=n)
        self._stream.leases = {"kv": lease, **(kv.settle(self._stream) or {})}
        kv.seal(self._stream, n)
        self._kv, self._ops, self._arena = kv, ops, Arena()
        self._inside = Inside(stack.select, stack.kernel, stack.probe)
        self._scale = SMOLLM2.head_dim**-0.5

    def step(self, rng: np.random.Generator) -> float:
        """Absorb one more random token: seconds between the projections of all layers."""
        g, stream = SMOLLM2, self._stream
        at = stream.done
        stream.known += 1
        if not self._field.pool.grow(stream.leases["kv"], at + 1):
            raise RuntimeError("a synthetic context has room for a page of new tokens")
        rows = [rng.standard_normal((1, g.heads + 2 * g.kv_heads, g.head_dim), np.float32) for _ in range(g.layers)]
        began = time.perf_counter()
        b = self._batch(at)
        out = np.empty((1, g.heads, g.head_dim), np.float32)
        fused = self._ops.fuse()
        native: Any = None if fused is None else self._inside.between(b, self._kv, fused, self._scale)
        if native is not None:
            for layer, qkv in enumerate(rows):
                native.mix(g.layers, layer, qkv, out)
            rows = []
        for layer, qkv in enumerate(rows):
            self._kv.write(layer, b.rows, qkv[:, g.heads : g.heads + g.kv_heads], qkv[:, g.heads + g.kv_heads :])
            view = View(layer, self._kv, self._ops, b, b.lo, self._scale)
            self._inside.attend(view, qkv[:, : g.heads], out, self._arena)
        seconds = time.perf_counter() - began
        stream.done += 1
        return seconds

    def _batch(self, at: int) -> Batch:
        pool, lease = self._field.pool, self._stream.leases["kv"]
        tables, one = pool.tables([lease]), np.array([at], np.int32)
        return Batch(
            grants=(Grant(self._stream, 1),),
            leases=(self._stream.leases,),
            inputs=np.zeros(1, np.int32),
            pos=one,
            starts=np.array([0, 1], np.int32),
            rows=pool.rows(tables, np.zeros(1, np.int32), one),
            tables=tables,
            lo=np.zeros(1, np.int32),
            hi=one + 1,
            want=np.zeros(1, np.int32),
        )


def facts(ops: Ops, context: int) -> Facts:
    """Of a model in the synthetic geometry: the embedded one's, whose calibrations techniques find."""
    path, g = resolve("smollm2-135m"), SMOLLM2
    checkpoint = open_model(path)
    try:
        fingerprint = checkpoint.fingerprint
    finally:
        checkpoint.close()
    caps = frozenset({"paged_kv"})
    rope = rope_table(context, g.head_dim, 100_000.0)
    return Facts(caps, g.layers, g.heads, g.kv_heads, g.head_dim, context, False, fingerprint, path, ops, rope)


@dataclass(frozen=True, slots=True)
class Sparse:
    """What one stack took at one length: seconds per step in each round, and how many times as fast as dense."""

    use: tuple[str, ...]
    length: int
    rounds: list[float]
    times: list[float]
    bytes_per_token: float

    @property
    def seconds(self) -> float:
        return median(self.rounds)


def measure(
    stacks: Sequence[Sequence[str]], length: int, ops: Ops, rounds: int, tell: Callable[[str], None]
) -> Iterator[Sparse]:
    """Dense attention and each stack in turns: first what dense took, then each stack.

    Raises:
        UserError: a technique is unknown or does not fit this geometry, or the context takes too much memory.
    """
    steps = max(min(8, PAGE // (rounds + 1)), 1)
    every: list[Attending] = []
    for use in ((), *stacks):
        tell(f"filling {length:,} synthetic tokens: {' '.join(use) or 'dense'}")
        every.append(Attending(use, length, ops))
    taken: list[list[float]] = [[] for _ in every]
    for turn in range(rounds + 1):
        for one, seconds in zip(every, taken, strict=True):
            tell(f"{length:,} tokens, round {turn} of {rounds}")
            rng = np.random.default_rng([length, turn])
            found = median(one.step(rng) for _ in range(steps))
            if turn > 0:  # the first does not count
                seconds.append(found)
    for use, one, seconds in zip(((), *stacks), every, taken, strict=True):
        times = [d / s for d, s in zip(taken[0], seconds, strict=True)]
        yield Sparse(tuple(use), length, seconds, times, one.bytes_per_token)
