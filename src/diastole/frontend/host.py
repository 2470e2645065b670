"""EngineHost: runs an engine on one thread, taking commands and giving replies."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diastole.engine.engine import Engine
from diastole.engine.service import Service
from diastole.frontend import wire
from diastole.loops.ar import Tokens
from diastole.types import SLO, Event, Request, UserError

log = logging.getLogger("diastole.frontend")


class Loaded(NamedTuple):
    """A service that can take over."""

    service: Service
    card: wire.Card
    slo: SLO


class EngineHost:
    """The thread that calls ``run`` owns the engine; other threads ``put`` commands.

    Args:
        send: is given every reply, on the engine's thread.
        slo: default promises by service.
        load: loads a service anew; it is called on a thread of its own.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[wire.Reply], None],
        slo: dict[str, SLO],
        load: Callable[[wire.Reload], Loaded],
    ) -> None:
        self.engine, self.send, self.slo, self.load = engine, send, slo, load
        self._inbox: queue.SimpleQueue[wire.Command | Loaded | wire.NotReloaded] = queue.SimpleQueue()
        self._quitting = False

    def put(self, command: wire.Command) -> None:
        """Hand over a command, from any thread."""
        self._inbox.put(command)

    def run(self) -> None:
        """Serve until told to quit."""
        idle = True
        while not (self._quitting and not self.engine.busy):
            self._take(wait=idle)
            events = self.engine.step()
            idle = events is None
            if events:
                self.send(wire.Heard([spoken_of(e) for e in events]))

    def _take(self, wait: bool) -> None:
        """Do all commands that have come; ``wait`` for one if there is none."""
        try:
            command = self._inbox.get(block=wait)
            while True:
                self._do(command)
                command = self._inbox.get(block=False)
        except queue.Empty:
            return

    def _do(self, command: wire.Command | Loaded | wire.NotReloaded) -> None:
        match command:
            case wire.Add():
                self._add(command)
            case wire.Abort():
                self.engine.abort(command.id, command.reason, command.choice)
            case wire.Measure():
                for service in self.engine.services:
                    service.gauges()
                self.send(wire.Stats({s.name: s.meter.snapshot() for s in self.engine.services}))
            case wire.Ping():
                self.send(wire.Pong())
            case wire.Reload():
                threading.Thread(target=self._load, args=(command,), name="diastole-load", daemon=True).start()
            case Loaded():
                self.engine.add_service(command.service)
                self.slo[command.service.name] = command.slo
                self.send(wire.Reloaded(command.card))
            case wire.NotReloaded():
                self.send(command)
            case wire.Quit():
                self._quitting = True
                if command.now:
                    for service in self.engine.services:
                        for id in {s.req.id for s in service.ledger.streams}:
                            self.engine.abort(id)

    def _load(self, reload: wire.Reload) -> None:
        """On a thread of its own: most of loading leaves the engine's thread alone."""
        try:
            self._inbox.put(self.load(reload))
        except UserError as e:
            self._inbox.put(wire.NotReloaded(reload.service, e.message, e.param, e.code))
        except Exception as e:  # whatever it is, who asked must hear of it, and the running service goes on
            log.exception("service %s could not be loaded anew", reload.service)
            message = f"loading failed: {type(e).__name__}: {e}"
            self._inbox.put(wire.NotReloaded(reload.service, message, code="reload_failed"))

    def _add(self, add: wire.Add) -> None:
        prompt = np.frombuffer(add.prompt, np.int32)
        slo = add.slo or self.slo.get(add.service, SLO())
        try:
            self.engine.add(Request(add.id, add.service, prompt, add.params, slo, salt=add.salt))
        except UserError as e:
            self.send(wire.Refused(add.id, e.message, e.param, e.code))


def spoken_of(event: Event) -> wire.Spoken:
    """An engine event of a language model in the form that travels."""
    data: Tokens = event.data
    logprobs = None
    if data.chosen and data.chosen[0].logprob is not None:
        logprobs = [(c.logprob or 0.0, list(c.top)) for c in data.chosen]
    ids = [c.id for c in data.chosen]
    return wire.Spoken(event.id, event.choice, ids, logprobs, data.finish, data.prompt, data.cached)
