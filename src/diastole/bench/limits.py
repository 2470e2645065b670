"""What the machine could do at best, and how much of that a task needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diastole.bench.task import Task
from diastole.kernels import table
from diastole.types import UserError

_READ = 256 << 20  # bytes, more than caches hold
_ROUNDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured limits: bytes per second from memory, multiply-adds per second on bytes, bf16 and float32."""

    threads: int
    bandwidth: float
    int8: float
    bf16: float
    f32: float

    def rate(self, fmt: str) -> float:
        """Multiply-adds per second for a weight format."""
        return {"f32": self.f32, "bf16": self.bf16}.get(fmt, self.int8)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model's steps must at least move and multiply."""

    weights: int  # bytes of all matrices that a step reads
    kv_token: float  # bytes of keys and values per token
    layers: dict[str, int]  # multiply-adds per token in all matrices but the head, by weight format
    head: tuple[str, int]  # format and multiply-adds per wanted row
    attention: int  # multiply-adds per row and token looked at
    kernels: str

    def seconds(self, task: Task, machine: Machine) -> float:
        """The least time for one turn of a task: memory or multiplying, whichever takes longer."""
        if task.steps:
            context = task.streams * (task.prompt + task.steps / 2)
            rows, looked, wanted = task.streams, context, task.streams
            moved = self.weights + self.kv_token * context
        else:
            rows, looked, wanted = task.prompt, task.prompt * (task.prompt + 1) / 2, 1
            moved = self.weights + self.kv_token * task.prompt
        busy = sum(macs * rows / machine.rate(fmt) for fmt, macs in self.layers.items())
        busy += self.head[1] * wanted / machine.rate(self.head[0]) + self.attention * looked / machine.bf16
        return max(1, task.steps) * max(moved / machine.bandwidth, busy)


def measure(threads: int, kernels: str = "native") -> Machine:
    """Measure this machine with native kernels: about three seconds.

    Raises:
        UserError: they are not built, or this machine does not run them.
    """
    ops = table.load(threads, "native" if kernels == "auto" else kernels)
    native = table.compiled()
    if native is None:
        raise UserError("the native operators are not built: nothing to measure with", param="kernels")
    data = ops.alloc(_READ)
    data[:] = 1  # so that it is there
    read = _best(lambda: native.probe_read(data))
    rates = [_rate(native, fmt) for fmt in ("q8", "bf16", "f32")]
    return Machine(native.threads(), _READ / read, *rates)


def _rate(native: Any, fmt: str) -> float:
    """Multiply-adds per second of all threads."""
    done: float = native.probe_peak(fmt, 1) * _ROUNDS
    return done / _best(lambda: native.probe_peak(fmt, _ROUNDS))


def _best(work: Callable[[], object]) -> float:
    """Median seconds of the faster half of nine runs: a limit is not what a neighbour left over."""
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(sorted(seconds)[:5])
