"""From a checkpoint and settings to a service of pictures that come out of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diastole import registry
from diastole.clock import Clock
from diastole.config import ServiceConfig
from diastole.engine.admission import Admission
from diastole.engine.compose import Mixed
from diastole.engine.cost import Features, FittedCost
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.loops.denoise import Denoise
from diastole.metrics import Meter
from diastole.params import PictureParams
from diastole.slots import Facts
from diastole.state.cells import CellPool
from diastole.types import Grant, Request

READS = frozenset({"refresh", "compose"})  # slots of such a service
GUESS = (0.002, 0.005, 0.005, 0.0)  # seconds of a step, of a picture's decoder, and of a thousand of its encoders
CROWDS = (1, 2, 4)  # pictures at once that are rehearsed


def by_pictures(grants: Sequence[Grant]) -> Features:
    """What steps go by: how often decoder and encoder run."""
    decoded = sum(n * len(s.own.labels) for s, n in grants)
    encoded = sum(len(s.own.labels) for s, _ in grants if s.own.key and s.own.key[0])
    return 1.0, float(decoded), encoded / 1000, 0.0


def assemble_denoise(name: str, model: Any, config: ServiceConfig, admission: Admission | None = None) -> Service:
    """A service of pictures, as many at once as ``max_streams`` says.

    Raises:
        UserError: a technique that it cannot use.
    """
    stack = registry.build(config.use, {"compose": Mixed(config.step_tokens)}, Facts(model.caps), READS)
    specs = {} if stack.refresh is None else model.features()
    pool = CellPool(specs, config.max_streams)
    loop = Denoise(model, pool, stack.refresh)
    cost, meter = FittedCost(GUESS, by_pictures), Meter()
    ledger = Ledger(loop, {"cell": pool}, cost, meter, None, config.max_streams, admission)
    return Service(name, model, loop, {"cell": pool}, stack.compose, cost, ledger, meter)


def rehearse_denoise(service: Service, loop: Denoise, clock: Clock, most: int) -> None:
    """Teach a service's cost model what steps take, before anybody waits for one."""
    steps = 8
    try:
        loop.refresh.keys(steps)
    except ValueError:
        steps = 50
    label = 0 if loop.model.classes else None
    for crowd in (n for n in CROWDS if n <= most):
        requests = [Request(f"rehearsal-{i}", service.name, None, PictureParams(steps, label)) for i in range(crowd)]
        streams = [stream for r in requests if loop.admit(stream := loop.open(r))]
        for _ in range(8):
            if streams[0].finished:
                break
            grants = [Grant(s, loop.ask(s).hi) for s in streams]
            began = clock.now()
            batch = loop.prepare(grants)
            output = service.model.forward(batch, service.state)
            service.cost.learn(grants, clock.now() - began)
            loop.commit(batch, output, clock.now())
        for stream in streams:
            loop.close(stream)
