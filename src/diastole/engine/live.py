"""From a model of live input to a service that runs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diastole import registry
from diastole.clock import Clock
from diastole.config import ServiceConfig
from diastole.engine.admission import Admission
from diastole.engine.compose import Mixed
from diastole.engine.cost import Features, FittedCost
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.live import Chunk, LiveModel, LiveParams
from diastole.loops.frames import LiveFrames
from diastole.loops.windows import LiveWindows
from diastole.metrics import Meter
from diastole.slots import Facts
from diastole.state.cells import CellPool
from diastole.types import Grant, Request

READS = frozenset({"compose"})  # slots of such a service
GUESS = (0.002, 0.0005, 0.0, 0.0)  # seconds of a step, and of a unit in it
CROWDS = (1, 4, 16, 64)  # streams at once that are rehearsed
TIMES = 3


def by_units(grants: Sequence[Grant]) -> Features:
    """What steps of live streams go by: how long a stream has run is no matter."""
    return 1.0, float(sum(n for _, n in grants)), 0.0, 0.0


def assemble_live(name: str, model: LiveModel, config: ServiceConfig, admission: Admission | None = None) -> Service:
    """A service of live streams, as many at once as ``max_streams`` says.

    Raises:
        UserError: a technique that it cannot use.
    """
    kind = LiveWindows if model.signal.window else LiveFrames
    pool = CellPool(kind.specs(model), config.max_streams)
    stack = registry.build(config.use, {"compose": Mixed(config.step_tokens)}, Facts(model.caps), READS)
    cost, meter = FittedCost(GUESS, by_units), Meter()
    loop = kind(model, pool)
    ledger = Ledger(loop, {"cell": pool}, cost, meter, None, config.max_streams, admission)
    return Service(name, model, loop, {"cell": pool}, stack.compose, cost, ledger, meter)


def rehearse(service: Service, model: LiveModel, clock: Clock, most: int) -> None:
    """Teach a service's cost model what steps take, with made-up input, before anybody waits for one."""
    loop, signal = service.loop, model.signal
    for crowd in (n for n in CROWDS if n <= most):
        requests = [Request(f"rehearsal-{i}", service.name, None, LiveParams()) for i in range(crowd)]
        streams = [stream for r in requests if loop.admit(stream := loop.open(r))]
        chunk = streams[0].own.chunk * signal.hop
        for nth in range(TIMES + 1):
            # The first fills the window, and touches everything.
            samples = max(signal.window, chunk) if nth == 0 else chunk
            for stream in streams:
                loop.feed(stream, Chunk(np.zeros((samples, len(signal.channels)), np.float32)), clock.now())
            grants = [Grant(stream, stream.left) for stream in streams]
            began = clock.now()
            batch = loop.prepare(grants)
            output = service.model.forward(batch, service.state)
            if nth:
                service.cost.learn(grants, clock.now() - began)
            loop.commit(batch, output, clock.now())
        for stream in streams:
            loop.close(stream)
