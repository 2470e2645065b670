"""Engine: asks, dispatch, grants, batch, run, commit. It knows no kind of model and no technique by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diastole.clock import Clock
from diastole.engine.executor import Executor, Inline
from diastole.engine.service import Service
from diastole.engine.trace import Trace, View
from diastole.slots import Dispatcher
from diastole.types import Array, Event, Request, UserError


class Engine:
    """Runs the streams of several services under one clock. Not thread-safe: one thread owns it."""

    def __init__(
        self, services: Sequence[Service], clock: Clock, dispatch: Dispatcher, executor: Executor | None = None
    ) -> None:
        self.services = list(services)
        self.clock, self.dispatch, self.executor = clock, dispatch, executor or Inline()
        self.trace = Trace()
        self._by_name = {s.name: s for s in self.services}

    def step(self) -> list[Event] | None:
        """One step of one service: its events, which may be none; None when there is nothing to run."""
        now = self.clock.now()
        for service in self.services:
            service.ledger.admit(now)
        turn = self.dispatch.next(self.services, now)
        if turn is None:
            return None
        index, asks, seconds = turn
        service = self.services[index]
        batch = service.loop.prepare(service.compose.compose(asks, seconds, service.cost))
        events: list[Event] = []
        if batch.grants:
            output = self.executor.run(service, batch)
            end = self.clock.now()
            self.trace.ran(service.name, now, end - now, batch.grants)
            service.cost.learn(batch.grants, end - now)
            service.meter.stepped(end - now, len(batch.inputs))
            events = service.ledger.settle(service.loop.commit(batch, output, end), end)
        service.ledger.relieve(batch.starved)
        return events

    # ---- requests

    def service(self, name: str) -> Service:
        """Raises:
        UserError: no service has this name.
        """
        if name not in self._by_name:
            known = ", ".join(sorted(self._by_name))
            raise UserError(f"no service is called {name!r}; there are: {known}", param="model", code="model_not_found")
        return self._by_name[name]

    def preparation(self, request: Request) -> Callable[[], object] | None:
        """Work for a request that another thread may do before ``add``, so that nobody waits for it; None: none.

        Raises:
            UserError: no service has this name, or the request can never be served.
        """
        service = self.service(request.service)
        service.loop.check(request)
        return service.loop.preparation(request)

    def add(self, request: Request) -> None:
        """Take a request in; it arrives now.

        Raises:
            UserError: it can never be served, or its id is in use.
        """
        service = self.service(request.service)
        if any(request.id in s.ledger for s in self.services):
            raise UserError(f"request id {request.id!r} is in use", param="id", code="duplicate_id")
        service.loop.check(request)
        now = self.clock.now()
        service.ledger.add(service.loop.open(replace(request, arrival=now)), now)

    def feed(self, id: str, chunk: Array, last: bool = False) -> None:
        """Live input for a request.

        Raises:
            UserError: the request is unknown or over, or its loop refuses the chunk.
        """
        for service in self.services:
            for stream in service.ledger.streams:
                if stream.req.id == id:
                    service.loop.feed(stream, chunk, last)
                    return
        raise UserError(f"no live stream has id {id!r}", param="id", code="stream_not_found")

    def abort(self, id: str, reason: str = "abort", choice: int | None = None) -> bool:
        """End a request, or one choice of it, now and give back all it holds. False when unknown or over already."""
        now = self.clock.now()
        return any(service.ledger.abort(id, now, reason, choice) for service in self.services)

    def view(self, since: int = 0) -> View:
        """What it holds now, and what it did in the steps after number ``since``, as far back as the trace goes."""
        services = {s.name: s.view() for s in self.services}
        return View(self.clock.now(), self.trace.last, self.trace.since(since), services)

    def close(self) -> None:
        """Let go of all services and their memory."""
        self.services.clear()
        self._by_name.clear()

    @property
    def busy(self) -> bool:
        """Whether any stream is alive."""
        return any(len(s.ledger) for s in self.services)
