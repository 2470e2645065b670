"""Attention and FFN apart: a decoder whose layers are cut in two, each half in a process of its own.

StepFun, "Step-3 is Large yet Affordable" (arXiv 2507.19427), section on attention-FFN disaggregation. The attention
side holds keys and values, embedding, head and whatever acts inside the layers; the FFN side holds nothing of any
stream. A batch is cut into micro-batches by streams: while one is at the other side, the next is worked on here.

    attention   mix 0/a  mix 0/b  mix 0/c  mix 1/a  mix 1/b ...
    FFN                  ffn 0/a  ffn 0/b  ffn 0/c  ffn 1/a ...

States travel as float32, and a step has the bits of one process; or as bfloat16, for half of the bytes. What goes
another way through the model, or is too large, runs on the attention side alone, which has all weights: both map the
same file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from diastole import registry
from diastole.assets import resolve
from diastole.assets.models import open_model
from diastole.cluster.rings import STOP, Gone, Ring, Shape, Split, Transfer
from diastole.config import Config
from diastole.engine.service import Service
from diastole.frontend.assembly import packs
from diastole.kernels.table import load
from diastole.nn.arena import Arena
from diastole.nn.decoder import Decoder
from diastole.nn.inside import NOBODY
from diastole.nn.linear import Loader, WeightFormat
from diastole.types import Array, Batch, UserError

DRAFTED = 32  # rows of a stream in one step, at most, beside those of prompts


class Start(msgspec.Struct):
    """What the FFN side is given."""

    model: str
    weights: str
    kernels: str
    threads: int
    cpus: list[int]
    shape: Shape


@dataclass(slots=True)
class Stages:
    """Seconds of the attention side since the last ``reset``."""

    mixing: float = 0.0
    waiting: float = 0.0
    whole: float = 0.0
    steps: int = 0

    def reset(self) -> None:
        """From now on."""
        self.mixing = self.waiting = self.whole = 0.0
        self.steps = 0


class Apart:
    """A model for a ``Service``: use it as a context manager, so that the other process ends.

    Args:
        decoder: the attention side's; its FFNs are not used.
        model: the same model's file or directory.
        micro_batches: at most; a batch of fewer streams has fewer.
        rows: most of a batch; one that has more runs on the attention side alone.
        cpus: for the FFN side; none: all that there are.

    Raises:
        UserError: a number makes no sense, or the FFN side does not come up.
    """

    def __init__(
        self,
        decoder: Decoder,
        model: str,
        micro_batches: int = 3,
        transfer: Transfer = "f32",
        rows: int = 512,
        weights: WeightFormat = "auto",
        kernels: str = "auto",
        threads: int = 1,
        cpus: Sequence[int] = (),
    ) -> None:
        if not 1 <= micro_batches <= 16:
            raise UserError(f"micro_batches must be between 1 and 16, not {micro_batches}", param="micro_batches")
        self.decoder, self.most = decoder, micro_batches
        self.caps, self.stages = decoder.caps, Stages()
        shape = Shape(micro_batches, rows, decoder.width, transfer)
        self._start = Start(model, weights, kernels, threads, list(cpus), shape)
        self._arena = Arena()
        self._sent = 0
        self._child, self.ring = self._bring_up(shape)

    def _bring_up(self, shape: Shape) -> tuple[subprocess.Popen[bytes], Ring]:
        memory = os.memfd_create("diastole-afd")
        os.ftruncate(memory, shape.size)
        there, back = os.eventfd(0, os.EFD_SEMAPHORE), os.eventfd(0, os.EFD_SEMAPHORE)
        given = (memory, there, back)
        command = [sys.executable, "-m", "diastole.cluster.afd", *map(str, given)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=given)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(self._start) + b"\n")
        child.stdin.flush()  # it stays open: the other side sees by its end that this one is gone
        said = child.stdout.readline(4096).decode("utf-8", "replace").strip()
        if said != "ready":
            child.kill()
            child.wait()
            raise UserError(f"the FFN side did not come up: {said or 'it ended'}", param="model")
        return child, Ring(shape, memory, back, there, os.pidfd_open(child.pid))

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ring.stop(self._sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def ffn_seconds(self) -> float:
        """That the other side has worked so far."""
        return float(self.ring.busy[0])

    def state_specs(self) -> Mapping[str, Any]:
        return self.decoder.state_specs()

    def forward(self, b: Batch, state: Mapping[str, Any]) -> Array:
        """As ``Decoder.forward``.

        Raises:
            Gone: the other side has ended: no step can be run any more.
        """
        if b.relay is not None or len(b.inputs) > self.ring.shape.rows:
            return self.decoder.forward(b, state)
        began = time.perf_counter()
        kv, inside = state["kv"], state.get("inside", NOBODY)
        # What acts within the layers may remember its batch from one layer to the next.
        parts = parted(b, self.most if inside.idle else 1)
        x = self.decoder.embedded(b.inputs, self._arena.get("x", len(b.inputs), self.decoder.width))
        ends = np.cumsum([len(p.inputs) for p in parts]).tolist()
        views = [x[end - len(p.inputs) : end] for p, end in zip(parts, ends, strict=True)]
        layers = len(self.decoder.blocks)
        for layer in range(layers):
            for part, view in zip(parts, views, strict=True):
                if layer:
                    self._back(view, self._sent - len(parts))
                at = time.perf_counter()
                self.decoder.blocks[layer].mix(layer, view, part, kv, inside, self._arena)
                self.stages.mixing += time.perf_counter() - at
                self.ring.put(self._sent, layer, view)
                self._sent += 1
        for nth, view in enumerate(views):
            self._back(view, self._sent - len(parts) + nth)
        if b.tap is not None:
            self.decoder.norm(x[b.tap.rows], b.tap.hidden)
        out = self.decoder.logits(x[b.want])
        self.stages.whole += time.perf_counter() - began
        self.stages.steps += 1
        return out

    def _back(self, view: Array, nth: int) -> None:
        at = time.perf_counter()
        self.ring.take(nth, view)
        self.stages.waiting += time.perf_counter() - at


def parted(b: Batch, most: int) -> list[Batch]:
    """A batch in at most so many, by streams in their order, with about as many rows each."""
    streams = len(b.starts) - 1
    count = min(most, streams)
    if count <= 1 or b.also is not None:  # branches of one draft stay together
        return [b]
    total = int(b.starts[-1])
    cuts = [int(np.searchsorted(b.starts, total * i / count)) for i in range(count + 1)]
    cuts[0], cuts[-1] = 0, streams
    parts = []
    for first, last in pairwise(cuts):
        if last > first:
            parts.append(_some(b, first, last))
    return parts


def _some(b: Batch, first: int, last: int) -> Batch:
    lo, hi = int(b.starts[first]), int(b.starts[last])
    wanted = b.want[(b.want >= lo) & (b.want < hi)] - lo
    branches = len(b.starts) - 1 != len(b.grants)
    return replace(
        b,
        grants=() if branches else b.grants[first:last],
        leases=() if branches else b.leases[first:last],
        inputs=b.inputs[lo:hi],
        pos=b.pos[lo:hi],
        starts=b.starts[first : last + 1] - b.starts[first],
        rows=b.rows[lo:hi],
        tables=np.ascontiguousarray(b.tables[first:last]),
        lo=b.lo[lo:hi],
        hi=b.hi[lo:hi],
        want=wanted,
    )


@contextmanager
def ffn_apart(services: Sequence[Service], config: Config, split: Split, cpus: Sequence[int]) -> Iterator[None]:
    """Each of these services, which a configuration made, runs its FFNs in a process of its own.

    Args:
        cpus: for these processes.

    Raises:
        UserError: a service has no layers that could be cut in two, or a process does not come up.
    """
    with ExitStack() as stack:
        for service, wanted in zip(services, config.service.values(), strict=True):
            model: Any = service.model
            if not hasattr(model, "open_forward"):
                message = f"{service.name} does not write token by token: only in models that do FFNs stand apart"
                raise UserError(message, param="ffn_apart")
            weights: Any = wanted.weights
            apart = Apart(
                model,
                str(resolve(wanted.model)),
                split.micro_batches,
                split.transfer,
                wanted.step_tokens + DRAFTED * wanted.max_streams,
                weights,
                wanted.kernels,
                len(cpus),
                cpus,
            )
            service.model = stack.enter_context(apart)
        yield


def halves(cores: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cores for the attention side and for the FFN side, which has the one that is over; a single one they share."""
    if len(cores) == 1:
        return [*cores], [*cores]
    half = len(cores) // 2
    return [*cores[:half]], [*cores[half:]]


# ---- the FFN side


def main(memory: int, hear: int, tell: int) -> None:
    """Work off what comes until told to stop, or until the attention side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the attention side decides when we stop
    start = msgspec.json.decode(sys.stdin.buffer.readline(1 << 16), type=Start)
    if start.cpus:
        os.sched_setaffinity(0, start.cpus)
    try:
        decoder = _loaded(start)
    except UserError as e:
        print(e.message.replace("\n", " "), flush=True)
        return
    ring = Ring(start.shape, memory, hear, tell, sys.stdin.fileno())
    print("ready", flush=True)
    arena, x = Arena(), np.empty((start.shape.rows, start.shape.width), np.float32)
    nth = 0
    with contextlib.suppress(Gone):
        while (layer := ring.take(nth, x)) != STOP:
            began = time.perf_counter()
            rows = x[: ring.rows]
            decoder.blocks[layer].ffn(rows, arena)
            ring.busy[:] += time.perf_counter() - began, 1
            ring.put(nth, layer, rows)
            nth += 1


def _loaded(start: Start) -> Decoder:
    checkpoint = open_model(Path(start.model))
    ops = load(start.threads, start.kernels)
    weights: Any = start.weights
    architecture = registry.model(str(checkpoint.config.get("model_type")))
    with packs(checkpoint, weights, ops) as kept:
        model: Decoder = architecture.build(Loader(ops, checkpoint, weights, kept), checkpoint.config, 0)
    checkpoint.close()
    return model


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
