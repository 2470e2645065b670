"""Live frames beside a language model: are their deadlines kept while long prompts keep coming, and what does it cost?

One engine runs both. The live service is synthetic: a small convolution, and products of made-up matrices that make a
frame cost about as much as one of a small speech model. Frames come every ``PERIOD`` seconds per stream and are owed
their answers ``GAP`` seconds later. The language model has prompts of thousands of tokens all the time, one after the
other, beside streams that chat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from diastole import registry
from diastole.engine.compose import Mixed
from diastole.engine.cost import FittedCost
from diastole.engine.engine import Engine
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.frontend.calm import calm
from diastole.live import Chunk, LiveParams
from diastole.loops.frames import LiveFrames
from diastole.metrics import Meter
from diastole.params import SamplingParams
from diastole.slots import Composer
from diastole.state.cells import CellPool
from diastole.types import SLO, Array, Batch, Request

PERIOD = 0.080  # seconds of a frame
GAP = 0.080  # seconds in which its answer is owed
FEATURES = 64
WIDTH = 1024  # of the made-up matrices
LAYERS = 6
CHATS = 4  # streams that answer, all the time
ANSWER = 64  # tokens of each answer
NAME = "live (synthetic)"


class Laboured:
    """A convolution, and work of the size of a small model's."""

    caps: frozenset[str] = frozenset({"cells"})

    def __init__(self) -> None:
        self.inner: Any = registry.architecture("tinyconv").TinyConv(FEATURES, 1 / PERIOD)
        rng = np.random.default_rng(0)
        self._w = [rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 32 for _ in range(LAYERS)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, b: Batch, state: Mapping[str, CellPool]) -> Array:
        out: Array = self.inner.forward(b, state)
        x = np.repeat(out, WIDTH // FEATURES, axis=1)
        for w in self._w:
            x = np.tanh(x @ w)
        return out


def live_service(most: int) -> Service:
    """So many streams of it."""
    model = Laboured()
    pool = CellPool(LiveFrames.specs(model.inner), most)
    cost, meter = FittedCost((0.002, 0.0005, 0.0, 0.0)), Meter()
    loop = LiveFrames(model, pool)
    ledger = Ledger(loop, {"cell": pool}, cost, meter, None, most)
    return Service(NAME, model, loop, {"cell": pool}, Mixed(4096), cost, ledger, meter)


@dataclass(slots=True)
class Heard:
    """What came of a run."""

    delays: list[float] = field(default_factory=list)  # seconds from a frame's coming to its answer
    seconds: float = 0.0
    prompts: int = 0  # tokens of prompts that were read
    said: int = 0  # tokens of answers
    frames: float = 0.0  # seconds of steps of the live service
    held_up: float = 0.0  # seconds in which this thread could have run and was not let

    @property
    def kept(self) -> float:
        """The share of frames that were answered in time."""
        return float(np.mean(np.array(self.delays) <= GAP + 1e-9)) if self.delays else float("nan")

    @property
    def tokens(self) -> float:
        """Of the language model, read and said, per second."""
        return (self.prompts + self.said) / self.seconds


class Crowd:
    """What an engine is asked all the time.

    Args:
        model: name of the language model's service.
        prompt: ids of a long prompt.
        streams: of live frames; 0: none.
    """

    def __init__(self, engine: Engine, model: str, prompt: Sequence[int], streams: int) -> None:
        self.engine, self.model, self.prompt, self.streams = engine, model, prompt, streams
        self._ids = count()
        self._fed: dict[str, int] = {}
        self._rng = np.random.default_rng(1)

    def run(self, seconds: float, tell: Callable[[float], None] = lambda done: None) -> Heard:
        """For so many seconds."""
        engine, heard = self.engine, Heard()
        services = {s.name: s for s in engine.services}
        steps = _Steps(services.get(NAME))
        began, waited = engine.clock.now(), run_delay()
        end = began + seconds
        for _ in range(self.streams):
            id = f"frames-{next(self._ids)}"
            self._fed[id] = 0
            engine.add(Request(id, NAME, None, LiveParams(deadline=GAP), SLO(GAP, GAP)))
        long = self._ask(1, self.prompt)
        chats = [self._ask(ANSWER, self.prompt[: 32 + 8 * i]) for i in range(CHATS)]
        while (now := engine.clock.now()) < end:
            self._feed(began, now)
            for event in engine.step() or ():
                if event.id in self._fed:
                    at = began + event.data.start + PERIOD
                    heard.delays.append(event.at - at)
                    continue
                heard.said += event.units
                if event.final and event.id == long:
                    heard.prompts += len(self.prompt)
                    long = self._ask(1, self.prompt)
                elif event.final and event.id in chats:
                    chats[chats.index(event.id)] = self._ask(ANSWER, self.prompt[: 32 + int(self._rng.integers(64))])
            tell(now - began)
        done = next((s.done for s in services[self.model].ledger.running if s.req.id == long), 0)
        heard.prompts += done
        heard.seconds = engine.clock.now() - began
        heard.frames, heard.held_up = steps.seconds, run_delay() - waited
        for id in [long, *chats, *self._fed]:
            engine.abort(id)
        self._fed.clear()
        return heard

    def _ask(self, most: int, prompt: Sequence[int]) -> str:
        id = f"text-{next(self._ids)}"
        params = SamplingParams(max_tokens=most, temperature=0, seed=0, ignore_eos=True)
        fresh = [*prompt[:-1], int(self._rng.integers(100, 200))]  # no run finds another's prompt in the cache
        self.engine.add(Request(id, self.model, np.array(fresh, np.int32), params, SLO(60.0, 0.5)))
        return id

    def _feed(self, began: float, now: float) -> None:
        """Frames that have come by now, during the last step perhaps."""
        came = int((now - began) / PERIOD)
        for id, fed in self._fed.items():
            for i in range(fed, came):
                frame = self._rng.normal(size=(1, FEATURES)).astype(np.float32)
                self.engine.feed(id, Chunk(frame, came=began + (i + 1) * PERIOD))
            self._fed[id] = came


class _Steps:
    """Seconds of a service's steps from now on."""

    def __init__(self, service: Service | None) -> None:
        self._of = None if service is None else service.meter.histograms["step_seconds"]
        self._before = 0.0 if self._of is None else self._of.sum

    @property
    def seconds(self) -> float:
        return 0.0 if self._of is None else self._of.sum - self._before


def run_delay() -> float:
    """Seconds in which this thread was ready to run and another one had its processor, since it began; 0 where the
    system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Contest:
    """All that was measured."""

    streams: int
    alone: Heard  # the language model without frames
    beside: Heard
    greedy: Heard  # the same where whole prompts run as they come

    @property
    def throughput(self) -> float:
        """The language model's beside frames, of what it does alone in the time that frames leave."""
        left = 1 - self.beside.frames / self.beside.seconds
        return self.beside.tokens / (self.alone.tokens * left)


def measure(
    llm: Any,
    prompt: Sequence[int],
    streams: int,
    seconds: float,
    first_come: Composer,
    tell: Callable[[str, float], None] = lambda what, done: None,
) -> Contest:
    """Alone, beside frames, and beside frames with prompts as they come, each for so many seconds; the last for a
    fifth of that.

    Args:
        llm: a model that is open; it gets a second service.
        first_come: the rival composer.
    """
    with calm(), threadpool_limits(1):  # the made-up matrices' own; the model has its threads
        return _measure(llm, prompt, streams, seconds, first_come, tell)


def _measure(
    llm: Any,
    prompt: Sequence[int],
    streams: int,
    seconds: float,
    first_come: Composer,
    tell: Callable[[str, float], None],
) -> Contest:
    engine: Engine = llm.engine
    text = engine.service(llm.name)
    warm = Crowd(engine, llm.name, prompt[:1024], 0)
    warm.run(min(5.0, seconds / 4), lambda done: tell("warming up", done))
    alone = Crowd(engine, llm.name, prompt, 0).run(seconds, lambda done: tell("alone", done))
    engine.add_service(live_service(streams))
    Crowd(engine, llm.name, prompt[:256], streams).run(min(3.0, seconds / 4), lambda done: tell("learning", done))
    beside = Crowd(engine, llm.name, prompt, streams).run(seconds, lambda done: tell("beside frames", done))
    composer, text.compose = text.compose, first_come
    try:
        greedy = Crowd(engine, llm.name, prompt, streams).run(seconds / 5, lambda done: tell("first come", done))
    finally:
        text.compose = composer
    return Contest(streams, alone, beside, greedy)
