"""What a step costs beside the model: choosing tokens, which is native, and the Python around both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from diastole import sample
from diastole.bench.ours import Ours
from diastole.bench.task import Task
from diastole.engine.service import Service
from diastole.params import SamplingParams
from diastole.types import Array, Batch

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=1, ignore_eos=True)


class Watch:
    """Keeps the time of the calls that go through it. As an executor: of the model's forward passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, work: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = work(*args)
        self.seconds += time.perf_counter() - began
        return result

    def run(self, service: Service, batch: Batch) -> Array:
        output: Array = self.time(service.model.forward, batch, service.state)
        return output


@contextmanager
def native_sampling() -> Iterator[Watch]:
    """Watch the native sampler while this lasts."""
    watch, plain = Watch(), sample.sample
    sample.sample = partial(watch.time, plain)
    try:
        yield watch
    finally:
        sample.sample = plain


@dataclass(frozen=True, slots=True)
class Overhead:
    """Medians over steps, in seconds, and the shares of the model's time by phase."""

    streams: int
    step: float
    choosing: float  # in the native sampler
    python: float  # outside the sampler and the model's forward pass
    phases: dict[str, float]


def measure(model: str, threads: int, streams: int, steps: int, params: SamplingParams = GREEDY) -> Overhead:
    """Decode ``steps`` steps with so many streams.

    Raises:
        UserError: the model cannot be loaded, or so many streams do not fit.
    """
    task = Task("overhead", streams, 128, steps)
    ours = Ours(model, threads, streams, task.prompt + steps + 64, params=params)
    forward = ours.engine.executor = Watch()
    ours.begin(task.prompts(ours.vocab))
    ours.decode(4)
    ours.decoder.phases()
    whole, choosing, python = [], [], []
    with native_sampling() as chooser:
        for _ in range(steps):
            forward.seconds = chooser.seconds = 0.0
            seconds = ours.step()
            whole.append(seconds)
            choosing.append(chooser.seconds)
            python.append(seconds - chooser.seconds - forward.seconds)
    phases = {name: seconds / steps for name, seconds in ours.decoder.phases().items()}
    ours.end()
    ours.engine.close()
    step, chosen, around = (statistics.median(x) for x in (whole, choosing, python))
    return Overhead(streams, step, chosen, around, phases)
