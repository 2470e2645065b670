"""A stage on which schedulers take turns: one engine, the same requests, and whoever composes its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diastole import registry
from diastole.bench.load.arrivals import Open
from diastole.bench.load.drive import Local, Run
from diastole.bench.load.judge import Verdict, judge
from diastole.bench.load.work import Wish
from diastole.clock import RealClock
from diastole.engine.profile import SLICES, profile, seconds
from diastole.engine.service import Service
from diastole.llm import LLM
from diastole.reproduce.passing import Passing
from diastole.slots import Budgeted, Composer, CostModel, Facts
from diastole.types import SLO, Ask, Grant

STREAMS = 32
DELAY = 2.0  # seconds: the median scheduling delay that a capacity may have


@dataclass(eq=False, slots=True)
class Watch:
    """Stands between an engine and its composer: who was granted something when, and how long steps took."""

    inner: Composer
    clock: Any
    first: dict[str, float] = field(default_factory=dict)  # by request: when it was granted something first
    took: list[float] = field(default_factory=list)  # seconds of steps with slices beside streams that decode
    _pending: bool = False

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        grants = self.inner.compose(asks, seconds, cost)
        now = self.clock.now()
        for grant in grants:
            self.first.setdefault(grant.stream.req.id, now)
        emits = {a.stream for a in asks if a.emits}
        self._pending = any(g.stream in emits for g in grants) and any(g.stream not in emits for g in grants)
        return grants

    def stepped(self, took: float) -> None:
        """The step that was composed last is done."""
        if self._pending:
            self.took.append(took)


@dataclass(eq=False, slots=True)
class Heard(Passing):
    """Stands in for a cost model, and tells the present watch how long steps take."""

    watch: Watch | None = None

    def learn(self, grants: Sequence[Grant], seconds: float) -> None:
        self.cost.learn(grants, seconds)
        if self.watch is not None:
            self.watch.stepped(seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scheduler under one load."""

    verdict: Verdict
    said: Mapping[str, tuple[int, ...]]
    delay: float  # median seconds from arrival to the first grant
    took: Sequence[float]  # of mixed steps

    def within(self, limit: float) -> bool:
        """Whether capacity counts it: the paper's two conditions."""
        itl = self.verdict.itl
        return not self.verdict.failures and itl is not None and itl.p99 <= limit and self.delay <= DELAY


class Stage:
    """The engine, and whoever composes its steps now."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.service: Service = llm.engine.services[0]
        loop: Any = self.service.loop
        self.clock = RealClock()
        profile(self.service, loop.pool, self.clock, loop.context, STREAMS, SLICES)
        self.heard = Heard(self.service.cost)
        self.service.cost = self.heard
        eight = seconds(self.service, self.clock, 8, 512, (1,), 20)[1]
        self.step = float(np.median(eight))  # seconds of a step of eight streams

    def composer(self, use: str) -> Composer:
        """Of this name, settled."""
        stack = registry.build([use], {}, Facts(frozenset(), streams=STREAMS))
        if isinstance(stack.compose, Budgeted):
            stack.compose.settle(self.heard, STREAMS, self.llm.context)
        found: Composer = stack.compose
        return found

    def serve(self, use: str, wishes: Sequence[Wish], arrivals: Sequence[float], slo: SLO) -> Outcome:
        """All requests under one scheduler."""
        watch = Watch(self.composer(use), self.clock)
        self.service.compose, self.heard.watch = watch, watch
        ears = Ears(self.llm.engine, self.llm.name)
        began = self.clock.now()
        run = ears.run(wishes, Open(arrivals))
        self.heard.watch = None
        due = dict(zip(ears.ids, arrivals, strict=True))
        delays = [at - began - due[id] for id, at in watch.first.items()]
        said = {str(i): tuple(ears.said.get(id, ())) for i, id in enumerate(ears.ids)}
        return Outcome(judge(run, slo), said, float(np.median(delays)), watch.took)


class Ears(Local):
    """A target that keeps what was said."""

    def __init__(self, engine: Any, service: str) -> None:
        super().__init__(engine, service)
        self.said: dict[str, list[int]] = {}
        self.ids: list[str] = []
        self._step = engine.step
        self._add = engine.add

    def run(self, wishes: Sequence[Wish], plan: Any, *rest: Any) -> Run:
        engine = self._engine

        def step() -> Any:
            events = self._step()
            for event in events or ():
                self.said.setdefault(event.id, []).extend(c.id for c in event.data.chosen)
            return events

        def add(request: Any, *more: Any) -> None:
            self.ids.append(request.id)
            self._add(request, *more)

        engine.step, engine.add = step, add  # type: ignore[method-assign, assignment]
        try:
            return super().run(wishes, plan, *rest)
        finally:
            engine.step, engine.add = self._step, self._add  # type: ignore[method-assign]
