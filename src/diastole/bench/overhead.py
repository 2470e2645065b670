"""What a step costs beside the model: scheduling, gathering, choosing tokens, telling."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from diastole.bench.ours import Ours
from diastole.bench.task import Task
from diastole.engine.service import Service
from diastole.params import SamplingParams
from diastole.types import Array, Batch

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=1, ignore_eos=True)


class Watched:
    """An executor that keeps the time of every run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, service: Service, batch: Batch) -> Array:
        began = time.perf_counter()
        output: Array = service.model.forward(batch, service.state)
        self.seconds += time.perf_counter() - began
        return output


@dataclass(frozen=True, slots=True)
class Overhead:
    """Medians over steps, in seconds, and the shares of the model's time by phase."""

    streams: int
    step: float
    outside: float  # of the model's forward pass
    phases: dict[str, float]


def measure(model: str, threads: int, streams: int, steps: int, params: SamplingParams = GREEDY) -> Overhead:
    """Decode ``steps`` steps with so many streams.

    Raises:
        UserError: the model cannot be loaded, or so many streams do not fit.
    """
    task = Task("overhead", streams, 128, steps)
    ours = Ours(model, threads, streams, task.prompt + steps + 64, params=params)
    watch = ours.engine.executor = Watched()
    ours.begin(task.prompts(ours.vocab))
    ours.decode(4)
    ours.decoder.phases()
    whole, outside = [], []
    for _ in range(steps):
        watch.seconds = 0.0
        seconds = ours.decode(1)
        whole.append(seconds)
        outside.append(seconds - watch.seconds)
    phases = {name: seconds / steps for name, seconds in ours.decoder.phases().items()}
    ours.end()
    ours.engine.close()
    return Overhead(streams, statistics.median(whole), statistics.median(outside), phases)
