"""Twin: the engine itself on a fake clock, with a model that only takes time.

Engine, ledger, loop, pages, ``compose`` and ``dispatch`` are those that serve; only the forward pass is pretended: it
lets the clock go on by what a cost model predicts, and its logits never end a text. So what the twin says of a policy
cannot drift from what the policy does. All times are simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.loops.ar import AutoRegressive
from diastole.metrics import Meter
from diastole.params import SamplingParams
from diastole.sim.timeline import Arrival, Timeline
from diastole.slots import Composer, CostModel, Dispatcher
from diastole.state.pages import PagePool
from diastole.types import SLO, Array, Batch, Request, UserError

VOCAB = 2
NAME = "simulated"
PATIENT = SLO(math.inf, math.inf)


class NoStore:
    """Pages without bytes."""

    layout = "nothing"

    def copy_page(self, src: int, dst: int) -> None:
        """Nothing is there."""

    def pack(self, pages: Sequence[int]) -> Array:
        return np.zeros((len(pages), 0), np.uint8)

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        """Nothing comes back."""


class Pretended:
    """A model that says token 0 and never ends a text."""

    caps: frozenset[str] = frozenset({"paged_kv"})

    def forward(self, b: Batch, state: Any) -> Array:
        return np.zeros((len(b.want), VOCAB), np.float32)


class Timed:
    """An executor that lets the clock go on, and takes requests in that came meanwhile.

    Attributes:
        wrong: what the cost model predicted, where that is no time; a step may not raise, or a request gets the blame.
    """

    def __init__(self, clock: FakeClock, truth: CostModel | None) -> None:
        self.clock, self.truth = clock, truth
        self.wrong: float | None = None

    def run(self, service: Service, batch: Batch) -> Array:
        seconds = (self.truth or service.cost).predict(batch.grants)
        if math.isfinite(seconds) and seconds >= 0:
            self.clock.advance(seconds)
        else:
            self.wrong = seconds
        return service.model.forward(batch, service.state)


def service(compose: Composer, cost: CostModel, streams: int, pages: int, context: int | None = None) -> Service:
    """A service of a pretended model.

    Args:
        cost: what the policies believe; ``simulate`` lets steps take this long too, unless it is told the truth.
        streams: that may hold state at once.
        pages: of 64 tokens.
        context: most tokens of a request; None: as many as there is room for.
    """
    pool, meter = PagePool(pages, NoStore()), Meter()
    loop = AutoRegressive(pool, context or pages * 64, VOCAB, frozenset(), NAME)
    # No host tier: state without bytes would move in no time. Preempted streams are computed again.
    ledger = Ledger(loop, {"kv": pool}, cost, meter, None, streams)
    return Service(NAME, Pretended(), loop, {}, compose, cost, ledger, meter)


def simulate(
    load: Sequence[Arrival],
    served: Service,
    *,
    truth: CostModel | None = None,
    dispatch: Dispatcher | None = None,
    slo: SLO = PATIENT,
    stepped: Callable[[Engine], None] = lambda engine: None,
) -> list[Timeline]:
    """Run a load through the engine; the timelines in the order of the load.

    Args:
        load: in order of arrival.
        served: a service of ``service``, used once.
        truth: how long steps take, where the service's own cost model is only what it believes.
        slo: what every request is promised: it bounds how long steps may be.
        stepped: is called after every step.

    Raises:
        UserError: a request can never be served, the load is not in order, or a cost is negative or not finite.
    """
    clock = FakeClock()
    executor = Timed(clock, truth)
    engine = Engine([served], clock, dispatch or LeastSlack(), executor)
    times: list[list[float]] = [[] for _ in load]
    if any(not (0 <= a.at <= b.at < math.inf) for a, b in zip([*load[:1], *load], load, strict=False)):
        raise UserError("a load must be in order of arrival, from 0 s on", param="load")
    came = 0
    while came < len(load) or engine.busy:
        if not engine.busy:
            clock.advance(max(load[came].at - clock.now(), 0.0))
        while came < len(load) and load[came].at <= clock.now():
            engine.add(_request(came, load[came], slo))
            came += 1
        for event in engine.step() or ():
            times[int(event.id)] += [event.at] * event.units
        if executor.wrong is not None:
            message = f"the cost model predicts {executor.wrong} seconds for a step; it must be at least 0 and finite"
            raise UserError(message, param="cost")
        stepped(engine)
    return [Timeline(a.at, t) for a, t in zip(load, times, strict=True)]


def _request(index: int, arrival: Arrival, slo: SLO) -> Request:
    if arrival.prompt < 1 or arrival.output < 1:
        raise UserError(f"request {index} of the load must have a token in and out at least", param="load")
    params = SamplingParams(max_tokens=arrival.output, temperature=0, seed=0, ignore_eos=True)
    return Request(str(index), NAME, np.zeros(arrival.prompt, np.int32), params, slo)
