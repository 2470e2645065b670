"""Service: one model with its loop, its pools and its stack of policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from diastole.engine.guesses import guesses_of
from diastole.engine.ledger import Ledger
from diastole.engine.trace import ServiceView, StreamView, shown_id
from diastole.loops.base import Loop
from diastole.metrics import Meter
from diastole.slots import Composer, CostModel
from diastole.slots_drafts import Pacer
from diastole.types import Array, Ask, Batch, Owed, Stream

VIEWED = 256  # streams of one service that are shown
COSTS = ("step_seconds_base", "step_seconds_unit", "step_seconds_context", "step_seconds_work")  # gauges


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
    pace: Pacer | None = None  # None: streams run all they can
    keep: Callable[[], None] = lambda: None  # what was learned of it, for the next start

    def succeed(self, before: Service) -> None:
        """Count on where the service that this one replaces has come to; both count together while that one runs."""
        self.meter = self.ledger.meter = before.meter

    def asks(self) -> Sequence[Ask]:
        """What its streams could run now, and may."""
        asks = [ask for s in self.ledger.running if (ask := self.loop.ask(s)) is not None]
        if self.pace is None:
            return asks
        lengths = self.pace.lengths(asks, self.cost)
        return [a if a.hi == n else a._replace(hi=n) for a, n in zip(asks, lengths, strict=True)]

    def forecasts(self) -> Sequence[Owed]:
        """What its idle streams will be owed next."""
        coming = sorted(
            (c for s in self.ledger.running if (c := self.loop.forecast(s)) is not None), key=lambda c: c[0]
        )
        if not coming:
            return []
        # Those that will be due together run together: all of them must be done when the first is due.
        last = coming[0][0] + self.cost.promise([work for _, work in coming])
        burst = [work for due, work in coming if due <= last]
        rest = [Owed(due, self.cost.promise([work])) for due, work in coming[len(burst) :]]
        return [Owed(coming[0][0], self.cost.promise(burst)), *rest]

    def gauges(self) -> None:
        """Refresh the meter's gauges."""
        gauges = self.meter.gauges
        gauges["num_requests_running"] = len(self.ledger.running)
        gauges["num_requests_waiting"] = len(self.ledger.waiting)
        used, total = self.pages()
        gauges["kv_pages_used"], gauges["kv_pages"] = used, total
        gauges["kv_cache_usage_perc"] = used / max(total, 1)
        gauges.update(zip(COSTS, self.cost.coefficients, strict=True))

    def pages(self) -> tuple[int, int]:
        """Pages of rows in use, and how many there are; both 0 where state is not paged."""
        pool = self.ledger.pools.get("kv")
        return getattr(pool, "used", 0), getattr(pool, "pages", 0)

    def view(self) -> ServiceView:
        """What it holds now."""
        ledger = self.ledger
        used, total = self.pages()
        streams = [self._stream(s, True) for s in islice(ledger.running, VIEWED)]
        streams += [self._stream(s, False) for s in islice(ledger.waiting, VIEWED - len(streams))]
        return ServiceView(total, used, len(ledger.running), len(ledger.waiting), streams)

    def _stream(self, stream: Stream, running: bool) -> StreamView:
        req = stream.req
        ask = self.loop.ask(stream)
        drafted, kept = guesses_of(stream)
        return StreamView(
            id=shown_id(req.id),
            choice=stream.index,
            running=running,
            known=stream.known,
            done=stream.done,
            arrived=req.arrival,
            first=self.meter.first_output(req.id),
            due=stream.due if ask is None else ask.due,
            slo=req.slo,
            drafted=drafted,
            kept=kept,
        )
