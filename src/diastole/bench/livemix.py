"""Streams of real models of live input, mixed, beside a language model that is busy for a share of the time.

One engine runs all of them in real time. Streams come in chunks of their model's own, each at its own moment; each is
owed its answer before the next chunk is whole. Input is made up: noise costs a model as much as anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from diastole.bench.live import run_delay
from diastole.config import ServiceConfig
from diastole.engine.engine import Engine
from diastole.engine.live import assemble_live, rehearse
from diastole.live import Chunk, LiveModel, LiveParams
from diastole.params import SamplingParams
from diastole.types import SLO, Array, Request

ANSWER = 64  # tokens of an answer
CHATS = 4  # at once
SHORT = 48  # tokens of a chat's prompt
SOON, LATER = 0.0005, 0.005  # seconds of a wait


@dataclass(slots=True)
class Kept:
    """What became of the chunks of one model's streams."""

    streams: int
    period: float  # seconds of a chunk
    latencies: list[float] = field(default_factory=list)  # of the oldest chunk of each answer
    chunks: int = 0
    met: int = 0

    @property
    def share(self) -> float:
        """Of those that were answered in time."""
        return self.met / max(self.chunks, 1)


@dataclass(slots=True)
class Mixed:
    """A run."""

    models: dict[str, Kept]
    seconds: float = 0.0
    busy: float = 0.0  # seconds of steps of the language model
    tokens: int = 0  # that it read and said
    held_up: float = 0.0  # seconds in which this thread could have run and was not let

    @property
    def share(self) -> float:
        """Of all chunks in time."""
        return sum(k.met for k in self.models.values()) / max(sum(k.chunks for k in self.models.values()), 1)


class Line:
    """One stream, fed at its own pace."""

    def __init__(
        self, id: str, name: str, model: LiveModel, options: Mapping[str, Any], began: float, rng: np.random.Generator
    ) -> None:
        self.id, self.name = id, name
        signal = model.signal
        self.samples = model.chunk(model.options(options)) * signal.hop
        self.period = self.samples / signal.rate
        self.next = began + float(rng.uniform(0, self.period)) + self.period
        self.piece: Array = 0.05 * rng.normal(size=(self.samples, len(signal.channels))).astype(np.float32)

    def feed(self, engine: Engine, now: float) -> None:
        """What has come by now, perhaps during the last step."""
        while self.next <= now:
            engine.feed(self.id, Chunk(self.piece, came=self.next))
            self.next += self.period


def add(engine: Engine, models: dict[str, LiveModel], streams: int) -> None:
    """Services of these models, with room for so many streams of each."""
    for name, model in models.items():
        service = assemble_live(name, model, ServiceConfig(max_streams=streams))
        rehearse(service, model, engine.clock, streams)
        engine.add_service(service)


def run(
    engine: Engine,
    text: str,
    prompt: Sequence[int],
    models: dict[str, LiveModel],
    streams: int,
    seconds: float,
    load: float,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    tell: Callable[[float], None] = lambda done: None,
    wait: Callable[[float], None] = time.sleep,
) -> Mixed:
    """So many streams, dealt out to the models, for so long.

    Args:
        text: the language model's service; it reads ``prompt`` again and again, beside chats.
        load: share of the time that it is to be busy.
        options: of the models' streams, by the models' names.
        wait: lets so many seconds pass, where there is nothing to do.

    Raises:
        UserError: a model has no such options.
    """
    wishes = options or {}
    rng, ids = np.random.default_rng(1), count()
    began, waited = engine.clock.now(), run_delay()
    names = list(models)
    lines = {}
    for i in range(streams):
        name = names[i % len(names)]
        line = Line(f"line-{i}", name, models[name], wishes.get(name, {}), began, rng)
        lines[line.id] = line
        engine.add(Request(line.id, name, None, LiveParams(wishes.get(name, {}))))
    found = Mixed({n: Kept(sum(x.name == n for x in lines.values()), 0.0) for n in names})
    for line in lines.values():
        found.models[line.name].period = line.period
    steps = engine.service(text).meter.histograms["step_seconds"]
    before = steps.sum

    def ask(most: int, prompt: Sequence[int]) -> str:
        id = f"text-{next(ids)}"
        fresh = [*prompt[:-1], int(rng.integers(100, 200))]  # no run finds another's prompt in the cache
        params = SamplingParams(max_tokens=most, temperature=0, seed=0, ignore_eos=True)
        engine.add(Request(id, text, np.array(fresh, np.int32), params, SLO(60.0, 0.5)))
        return id

    alive: dict[str, int] = {}  # the language model's requests, with the tokens of their prompts
    last = 0.0
    while (now := engine.clock.now()) < began + seconds:
        for line in lines.values():
            line.feed(engine, now)
        if steps.sum - before < load * (now - began):
            if not any(n > SHORT for n in alive.values()):
                alive[ask(1, prompt)] = len(prompt)
            while len(alive) <= CHATS:
                alive[ask(ANSWER, prompt[:SHORT])] = SHORT
        events = engine.step()
        if events is None:
            wait(min(max(min(line.next for line in lines.values()) - engine.clock.now(), SOON), LATER))
        for event in events or ():
            if event.id in lines:
                kept = found.models[lines[event.id].name]
                kept.latencies.append(event.data.latency)
                kept.chunks += event.data.chunks
                kept.met += event.data.chunks - event.data.missed
                continue
            found.tokens += event.units
            if event.final:
                found.tokens += alive.pop(event.id, 0)
        if now - last > 0.2:
            last = now
            tell(now - began)
    found.seconds, found.busy = engine.clock.now() - began, steps.sum - before
    found.held_up = run_delay() - waited
    for id in (*lines, *alive):
        engine.abort(id)
    return found
