"""Driving a load: what is asked when, and what came of each request. An engine in this process is driven here; see
``remote.py`` for servers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

import numpy as np

from diastole.bench.load.arrivals import Plan
from diastole.bench.load.work import Wish
from diastole.engine.engine import Engine
from diastole.params import SamplingParams
from diastole.types import SLO, Ended, Event, Request, UserError

PATIENCE = 120.0  # seconds that a request may take in all
PATIENT = SLO(1e9, 1e9)
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
_TICK = 0.001  # seconds of sleep while an engine that is busy has nothing to run
_LEAST = 1e-6  # seconds of any sleep: less could vanish beside a clock's own time


@dataclass(slots=True)
class Timeline:
    """What became of one request. All times are seconds from the start of the run.

    Attributes:
        arrival: when it came; waiting counts from here.
        late: seconds from when it was due to ``arrival``, by the generator's own fault.
        times: of each piece of output: a token, or the several that came together.
        tokens: in all pieces.
        told: the server counted the tokens; else they are its pieces.
        cached: tokens of the prompt that were found in a prefix cache.
    """

    arrival: float
    late: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    told: bool = True
    cached: int = 0
    prompt: int = 0
    finish: str | None = None
    error: str | None = None  # why it was not answered, or not to its end


@dataclass(frozen=True, slots=True)
class Run:
    """A load that was driven, in order of requests."""

    timelines: list[Timeline]
    seconds: float  # from the first arrival to the end of the last answer


Tell = Callable[[int], None]


def nobody(done: int) -> None:
    """Hears nothing."""


class Target(Protocol):
    """Whoever answers."""

    def run(self, wishes: Sequence[Wish], plan: Plan, slo: SLO | None = None, tell: Tell = nobody) -> Run:
        """Send each request when the plan says so, and wait until all have ended.

        Args:
            slo: is told with each request; None: nothing is promised.
            tell: hears how many requests have ended.
        """
        ...


class Local:
    """An engine in this process, on its own clock. Between two of its steps all that is due by then arrives, as in a
    server whose engine is in the middle of a step; so waiting counts from when a request was due.

    Args:
        service: name of the one that is asked.
        patience: seconds after which a request is ended.
        sleep: lets so many seconds pass on the engine's clock.
        params: of all requests, but for the number of tokens.
    """

    def __init__(
        self,
        engine: Engine,
        service: str,
        patience: float = PATIENCE,
        sleep: Callable[[float], object] = time.sleep,
        params: SamplingParams = GREEDY,
    ) -> None:
        self._engine, self._service, self._patience, self._sleep = engine, service, patience, sleep
        self._params, self._runs = params, count()

    def run(self, wishes: Sequence[Wish], plan: Plan, slo: SLO | None = None, tell: Tell = nobody) -> Run:
        prefix = f"load-{next(self._runs)}-"
        requests = [
            Request(
                f"{prefix}{i}",
                self._service,
                np.asarray(w.prompt, np.int32),
                replace(self._params, max_tokens=w.output),
                slo or PATIENT,
            )
            for i, w in enumerate(wishes)
        ]
        drive = _Drive(self._engine, requests, plan, self._patience)
        try:
            while not drive.over:
                pause = drive.step()
                tell(drive.ended)
                if pause > 0:
                    self._sleep(pause)
        finally:
            drive.abort()
        return Run(drive.timelines, drive.seconds)


class _Drive:
    """One run of a local engine."""

    def __init__(self, engine: Engine, requests: Sequence[Request], plan: Plan, patience: float) -> None:
        self._engine, self._requests, self._plan, self._patience = engine, requests, plan, patience
        self._began = engine.clock.now()
        self._alive: dict[str, Timeline] = {}  # in order of arrival
        self.timelines: list[Timeline] = []
        self.seconds = 0.0

    @property
    def over(self) -> bool:
        return len(self.timelines) == len(self._requests) and not self._alive

    @property
    def ended(self) -> int:
        return len(self.timelines) - len(self._alive)

    def step(self) -> float:
        """Let in what is due, and have the engine do one step; the seconds until something can happen again."""
        now = self._now()
        due = math.inf
        while (nth := len(self.timelines)) < len(self._requests):
            due = self._plan.due(nth, len(self._alive), now)
            if due > now:
                break
            self._send(self._requests[nth], due)
            due = math.inf
        self._lose_patience(now)
        events = self._engine.step() if self._alive else None
        if events is not None:
            for event in events:
                self._hear(event)
            return 0.0
        wake = min(due, now + _TICK) if self._alive else due
        return max(wake - self._now(), _LEAST) if math.isfinite(wake) else 0.0

    def _now(self) -> float:
        return self._engine.clock.now() - self._began

    def _send(self, request: Request, due: float) -> None:
        timeline = Timeline(due, prompt=len(request.inputs))
        self.timelines.append(timeline)
        try:
            self._engine.add(request)
        except UserError as e:
            timeline.error = f"refused: {e.message}"
        else:
            self._alive[request.id] = timeline

    def _hear(self, event: Event) -> None:
        timeline = self._alive.get(event.id)
        if timeline is None:
            return
        at = event.at - self._began
        if isinstance(event.data, Ended):
            timeline.error = f"the engine ended it: {event.data.finish}"
        else:
            if event.data.chosen:
                timeline.times.append(at)
                timeline.tokens += len(event.data.chosen)
            timeline.cached = event.data.cached
            timeline.finish = event.data.finish
        if event.final:
            self._over(event.id, at)

    def _lose_patience(self, now: float) -> None:
        while self._alive:
            id, timeline = next(iter(self._alive.items()))
            if now - timeline.arrival < self._patience:
                return
            self._engine.abort(id)
            timeline.error = f"it took more than {self._patience:g} s"
            self._over(id, now)

    def _over(self, id: str, at: float) -> None:
        del self._alive[id]
        self.seconds = max(self.seconds, at)

    def abort(self) -> None:
        """End what still lives."""
        for id in self._alive:
            self._engine.abort(id)
