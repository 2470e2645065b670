"""Engine: asks, dispatch, grants, batch, run, commit. It knows no kind of model and no technique by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from diastole.clock import Clock
from diastole.engine.executor import Executor, Inline
from diastole.engine.faults import Blame, Ran
from diastole.engine.guesses import Guesses, guesses_of
from diastole.engine.service import Service
from diastole.engine.tail import Tail
from diastole.engine.trace import Trace, View, granted
from diastole.live import Chunk
from diastole.slots import Dispatcher
from diastole.state.lease import Blob
from diastole.types import Array, Batch, Event, Grant, Request, UserError

AWAY = 0.02  # seconds between two steps in which the engine's owner was elsewhere


class Engine:
    """Runs the streams of several services under one clock. Not thread-safe: one thread owns it."""

    def __init__(
        self, services: Sequence[Service], clock: Clock, dispatch: Dispatcher, executor: Executor | None = None
    ) -> None:
        self.services = list(services)
        self.clock, self.dispatch, self.executor = clock, dispatch, executor or Inline()
        self.trace = Trace()
        self._blame = Blame()
        self.guesses: dict[tuple[str, int], Guesses] = {}  # by request and choice, of drafts in the last step
        self._by_name = {s.name: s for s in self.services}
        self._ended: float | None = None  # of the last step, while there is always a next one
        self._between = Tail(0.0)  # seconds from the end of a step until the next one begins

    def step(self) -> list[Event] | None:
        """One step of one service: its events, which may be none; None when there is nothing to run."""
        if len(self.services) > len(self._by_name):
            self._let_go()
        self.guesses.clear()
        now = self.clock.now()
        if self._ended is not None and now - self._ended < AWAY:
            self._between.add(now - self._ended)
        late: list[Event] = []
        for service in self.services:
            if service.ledger.next_deadline <= now:
                late += service.ledger.overdue(now)
            service.ledger.admit(now)
        turn = self.dispatch.next(self.services, now)
        if turn is None:
            self._ended = None
            return late or None
        index, asks, seconds = turn
        service = self.services[index]
        # Whom this step must not make late begins after what is done between steps.
        grants = service.compose.compose(asks, seconds - self._between.worst, service.cost)
        try:
            batch, output = self._forward(service, grants)
        except Exception as e:
            ran = self._blame.one_by_one(service, grants, partial(self._run, service), e)
        else:
            ran = self._commit(service, batch, output, now)
        events = ran.events
        if ran.failed:
            events = [*events, *self._blame.end(service, ran, self.clock.now())]
        service.ledger.relieve([s for s in ran.starved if not s.finished] if ran.failed else ran.starved)
        return [*late, *events] if late else events

    def _run(self, service: Service, grants: Sequence[Grant]) -> Ran:
        began = self.clock.now()
        return self._commit(service, *self._forward(service, grants), began)

    def _forward(self, service: Service, grants: Sequence[Grant]) -> tuple[Batch, Array | None]:
        """What may fail and be done again. No output: nobody in the batch had room."""
        batch = service.loop.prepare(grants)
        return batch, self.executor.run(service, batch) if batch.grants else None

    def _commit(self, service: Service, batch: Batch, output: Array | None, began: float) -> Ran:
        if output is None:
            return Ran([], batch.starved)
        end = self._ended = self.clock.now()
        works = granted(batch.grants)
        service.cost.learn(batch.grants, end - began)
        outcome = service.loop.commit(batch, output, end)
        self.trace.ran(service.name, began, end - began, works, outcome.events)
        for (stream, _), sown in zip(batch.grants, batch.sown, strict=False):  # nothing is sown where nothing drafts
            if sown is not None and sown.draft.tokens:
                self.guesses[stream.req.id, stream.index] = guesses_of(stream)
        well = len(batch.grants) + len(outcome.born) - len(outcome.failed)
        if well:
            service.meter.stepped(end - began, len(batch.inputs))
        return Ran(service.ledger.settle(outcome, end), batch.starved, well, outcome.failed)

    @property
    def next_deadline(self) -> float:
        """When a step has to end a request for its time, at the earliest; infinite: never, as things are."""
        return min((s.ledger.next_deadline for s in self.services), default=math.inf)

    # ---- services

    def add_service(self, service: Service) -> None:
        """Requests for its name go to it from now on. A service that had this name before finishes its streams and is
        let go then; its meter goes on in the new one."""
        before = self._by_name.get(service.name)
        if before is not None:
            service.succeed(before)
        self.services.append(service)
        self._by_name[service.name] = service

    def _let_go(self) -> None:
        """Of services that others have replaced, and that have no streams any more."""
        for service in self.services:
            if not len(service.ledger) and self._by_name[service.name] is not service:
                service.keep()
        self.services = [s for s in self.services if len(s.ledger) or self._by_name[s.name] is s]

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

    def add(self, request: Request, said: Sequence[int] = (), hold: bool = False, elapsed: float = 0.0) -> None:
        """Take a request in; it arrives now, or arrived elsewhere ``elapsed`` seconds ago.

        Args:
            said: tokens that its text has already, which are not said again.
            hold: after its next token it is held with its state, until it is taken from here.

        Raises:
            UserError: it can never be served, or its id is in use.
        """
        service, request, now = self._new(request, elapsed)
        stream = service.loop.resume(request, said) if said or hold else service.loop.open(request)
        service.ledger.add(stream, now, hold)

    def take_over(self, request: Request, said: Sequence[int], elapsed: float, state: Mapping[str, Blob]) -> None:
        """Go on with a request that another engine held.

        Args:
            said: all tokens of its text so far.
            elapsed: seconds since it arrived there.
            state: what ``packed`` gave there; none: it is computed again.

        Raises:
            UserError: it cannot go on here, its id is in use, or the state is none of this service's.
        """
        service, request, now = self._new(request, elapsed)
        stream = service.loop.resume(request, said)
        if state:
            service.ledger.vet(state, stream.known)
        service.ledger.take_over(stream, now, state)

    def _new(self, request: Request, elapsed: float) -> tuple[Service, Request, float]:
        service = self.service(request.service)
        if any(request.id in s.ledger for s in self.services):
            raise UserError(f"request id {request.id!r} is in use", param="id", code="duplicate_id")
        service.loop.check(request)
        now = self.clock.now()
        return service, replace(request, arrival=now - elapsed), now

    def packed(self, id: str) -> Mapping[str, Blob] | None:
        """The state of a request that is held, as bytes; None: no such is held."""
        ledger = next((s.ledger for s in self.services if id in s.ledger.held), None)
        return None if ledger is None else ledger.packed(id)

    def release(self, id: str) -> bool:
        """A held request goes on elsewhere: its state is given back here. False: no such is held."""
        return any(s.ledger.release(id) for s in self.services)

    def feed(self, id: str, chunk: Chunk) -> None:
        """Live input for a request.

        Raises:
            UserError: the request is unknown or over, or its loop refuses the chunk.
        """
        for service in self.services:
            for stream in service.ledger.streams:
                if stream.req.id == id:
                    service.loop.feed(stream, chunk, self.clock.now())
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
        """Let go of all services and their memory; what was learned of them is kept."""
        for service in self.services:
            service.keep()
        self.services.clear()
        self._by_name.clear()

    @property
    def busy(self) -> bool:
        """Whether any stream is alive."""
        return any(len(s.ledger) for s in self.services)
