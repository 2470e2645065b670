"""EngineHost: runs an engine on one thread, taking commands and giving replies."""

from __future__ import annotations

import queue
from collections.abc import Callable

import numpy as np

from diastole.engine.engine import Engine
from diastole.frontend import wire
from diastole.loops.ar import Tokens
from diastole.types import SLO, Event, Request, UserError


class EngineHost:
    """The thread that calls ``run`` owns the engine; other threads ``put`` commands.

    Args:
        send: is given every reply, on the engine's thread.
        slo: default promises by service.
    """

    def __init__(self, engine: Engine, send: Callable[[wire.Reply], None], slo: dict[str, SLO]) -> None:
        self.engine, self.send, self.slo = engine, send, slo
        self._inbox: queue.SimpleQueue[wire.Command] = queue.SimpleQueue()
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

    def _do(self, command: wire.Command) -> None:
        match command:
            case wire.Add():
                self._add(command)
            case wire.Abort():
                self.engine.abort(command.id, command.reason, command.choice)
            case wire.Measure():
                for service in self.engine.services:
                    service.gauges()
                self.send(wire.Stats({s.name: s.meter.snapshot() for s in self.engine.services}))
            case wire.Quit():
                self._quitting = True
                if command.now:
                    for service in self.engine.services:
                        for id in {s.req.id for s in service.ledger.streams}:
                            self.engine.abort(id)

    def _add(self, add: wire.Add) -> None:
        prompt = np.frombuffer(add.prompt, np.int32)
        slo = add.slo or self.slo.get(add.service, SLO())
        try:
            self.engine.add(Request(add.id, add.service, prompt, add.params, slo, salt=add.salt, priority=add.priority))
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
