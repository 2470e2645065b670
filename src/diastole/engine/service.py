"""Service: one model with its loop, its pools and its stack of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from diastole.engine.ledger import Ledger
from diastole.loops.base import Loop
from diastole.metrics import Meter
from diastole.slots import Composer, CostModel
from diastole.types import Array, Ask, Batch


class Model(Protocol):
    """What runs a batch."""

    @property
    def caps(self) -> frozenset[str]: ...

    def forward(self, b: Batch, state: Any) -> Array:
        """Outputs of the wanted rows, in batch order."""
        ...


@dataclass(eq=False, slots=True)
class Service:
    """Everything the engine needs to run one model's streams."""

    name: str
    model: Model
    loop: Loop
    state: Mapping[str, Any]  # what the model reads: stores and pools by name
    compose: Composer
    cost: CostModel
    ledger: Ledger
    meter: Meter

    def asks(self) -> Sequence[Ask]:
        """What its streams could run now."""
        return [ask for s in self.ledger.running if (ask := self.loop.ask(s)) is not None]

    def forecasts(self) -> Sequence[float]:
        """When its idle streams will have to start at the latest to keep their next deadlines, in seconds."""
        coming = (self.loop.forecast(s) for s in self.ledger.running)
        return [due - self.cost.predict([work]) for due, work in (c for c in coming if c is not None)]

    def gauges(self) -> None:
        """Refresh the meter's gauges."""
        gauges = self.meter.gauges
        gauges["num_requests_running"] = len(self.ledger.running)
        gauges["num_requests_waiting"] = len(self.ledger.waiting)
        paged = [(p.used, p.pages) for p in self.ledger.pools.values() if hasattr(p, "pages") and hasattr(p, "used")]
        gauges["kv_pages_used"], gauges["kv_pages"] = (sum(n) for n in zip(*paged, strict=True)) if paged else (0, 0)
        gauges["kv_cache_usage_perc"] = gauges["kv_pages_used"] / max(gauges["kv_pages"], 1)
