"""Requests that arrive in time: one engine under an open load, on the real clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from diastole.engine.engine import Engine
from diastole.params import SamplingParams
from diastole.types import SLO, Request

PATIENT = SLO(1e9, 1e9)


@dataclass(slots=True)
class Served:
    """What became of a load."""

    latencies: list[float] = field(default_factory=list)  # seconds from arrival to the last token, by request
    said: dict[int, list[int]] = field(default_factory=dict)  # by request
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(self.latencies))


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Arrival times of ``count`` requests, ``rate`` per second on average; the first arrives at 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [float(t) for t in np.cumsum(gaps) - gaps[0]]


def serve(
    engine: Engine,
    name: str,
    prompts: Sequence[Sequence[int]],
    arrivals: Sequence[float],
    params: SamplingParams,
    stepped: Callable[[], None] = lambda: None,
) -> Served:
    """Run each prompt from its arrival on, in seconds from now, until all have been answered.

    Args:
        name: of the service.
        stepped: is called after every step.
    """
    done = Served(latencies=[0.0] * len(prompts), said={i: [] for i in range(len(prompts))})
    waiting = sorted(range(len(prompts)), key=lambda i: arrivals[i])[::-1]
    began = time.perf_counter()
    while waiting or engine.busy:
        now = time.perf_counter() - began
        while waiting and arrivals[waiting[-1]] <= now:
            i = waiting.pop()
            engine.add(Request(str(i), name, np.asarray(prompts[i], np.int32), params, PATIENT))
        if not engine.busy:
            time.sleep(max(arrivals[waiting[-1]] - now, 0.0))
            continue
        events = engine.step() or ()
        now = time.perf_counter() - began
        for event in events:
            i = int(event.id)
            done.said[i] += [c.id for c in event.data.chosen]
            if event.final:
                done.latencies[i] = now - arrivals[i]
        stepped()
    done.seconds = time.perf_counter() - began
    return done
