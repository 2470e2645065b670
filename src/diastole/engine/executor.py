"""Executor: where a batch runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from diastole.clock import FakeClock
from diastole.engine.service import Service
from diastole.types import Array, Batch


class Executor(Protocol):
    """Runs a service's batch and gives the model's output."""

    def run(self, service: Service, batch: Batch) -> Array: ...


class Inline:
    """In this process, now."""

    def run(self, service: Service, batch: Batch) -> Array:
        return service.model.forward(batch, service.state)


class Simulated:
    """Like ``Inline``, but time passes on a fake clock as the cost says, and ``during`` is told each new time."""

    def __init__(self, clock: FakeClock, during: Callable[[float], None] = lambda now: None) -> None:
        self.clock, self.during = clock, during

    def run(self, service: Service, batch: Batch) -> Array:
        seconds = service.cost.predict(batch.grants)
        output = service.model.forward(batch, service.state)
        self.clock.advance(seconds)
        self.during(self.clock.now())
        return output
