"""EngineHost: runs an engine on one thread, taking commands and giving replies."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from diastole.engine.engine import Engine
from diastole.engine.guesses import NONE, Guesses
from diastole.engine.service import Service
from diastole.engine.trace import shown_id
from diastole.frontend import wire
from diastole.live import Chunk
from diastole.loops.denoise import Shown
from diastole.loops.frames import Read
from diastole.loops.pooling import Pooled
from diastole.loops.texts import Tokens
from diastole.state.lease import Blob
from diastole.types import SLO, Ended, Event, Request, UserError

log = logging.getLogger("diastole.frontend")


class Loaded(NamedTuple):
    """A service that can take over."""

    service: Service
    card: wire.AnyCard
    slo: SLO


class _Prepared(NamedTuple):
    """What a request needed before it could be opened is done, or has failed."""

    request: Request
    history: History
    error: UserError | None


class History(NamedTuple):
    """What became of a request elsewhere, and what is to become of it."""

    said: Sequence[int] = ()
    elapsed: float = 0.0  # seconds
    hold: bool = False


class Fetched(NamedTuple):
    """The state of a request that another engine held, or why there is none."""

    fetch: wire.Fetch
    state: Mapping[str, Blob]
    why: str = ""


class Bridge(Protocol):
    """Fetches what other engines hold."""

    def want(self, fetch: wire.Fetch) -> None:
        """This is to be taken over, as soon as there is room."""
        ...

    def forget(self, id: str) -> bool:
        """It is not wanted any more; False: it was not, or comes anyway."""
        ...

    def pump(self, engine: Engine) -> None:
        """Begin to fetch what there is room for. What comes of it is put to the engine's thread as ``Fetched``."""
        ...


class NoBridge:
    """An engine that stands alone."""

    def want(self, fetch: wire.Fetch) -> None:
        raise UserError("this engine takes nothing over", param="fetch")

    def forget(self, id: str) -> bool:
        return False

    def pump(self, engine: Engine) -> None:
        """Nothing is wanted."""


Message = wire.Command | _Prepared | Fetched | Loaded | wire.NotReloaded  # to the engine's thread


class EngineHost:
    """The thread that calls ``run`` owns the engine; other threads ``put`` commands.

    Args:
        send: is given every reply, on the engine's thread.
        slo: default promises by service.
        load: loads a service anew; it is called on a thread of its own.
        bridge: fetches what other engines hold.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[wire.Reply], None],
        slo: dict[str, SLO],
        load: Callable[[wire.Reload], Loaded],
        bridge: Bridge | None = None,
    ) -> None:
        self.bridge = bridge or NoBridge()
        self.states: dict[str, Mapping[str, Blob]] = {}  # of requests that are held, packed; any thread may look
        self.engine, self.send, self.slo, self.load = engine, send, slo, load
        self._inbox: queue.SimpleQueue[tuple[float, Message]] = queue.SimpleQueue()  # and when each came
        self._quitting = False
        self._preparing: set[str] = set()  # ids of requests that are being prepared and have not been aborted
        self._helper = ThreadPoolExecutor(1, "diastole-prepare")  # its thread starts with the first task

    def put(self, command: wire.Command | Fetched) -> None:
        """Hand over a command, from any thread."""
        self._put(command)

    def _put(self, message: Message) -> None:
        self._inbox.put((self.engine.clock.now(), message))

    def run(self) -> None:
        """Serve until told to quit."""
        idle = True
        while not self._quitting or self.engine.busy or self._preparing:
            self._take(wait=idle)
            self.bridge.pump(self.engine)
            events = self.engine.step()
            idle = events is None
            if events:
                self._tell(events)
            self._tell_held()

    def _tell(self, events: Sequence[Event]) -> None:
        spoken = []
        over: dict[str, Ended] = {}
        for event in events:
            if isinstance(event.data, Ended):
                over[event.id] = event.data
            elif isinstance(event.data, Read):
                self.send(beat_of(event))
            elif isinstance(event.data, Shown):
                self.send(painted_of(event.id, event.data))
            elif isinstance(event.data, Pooled):
                self.send(wire.Vector(event.id, event.data.vector.tobytes()))
            else:
                spoken.append(spoken_of(event, self.engine.guesses))
        if spoken:
            self.send(wire.Heard(spoken))
        for id, why in over.items():
            self.send(wire.Over(id, why.finish))

    def _tell_held(self) -> None:
        """They are packed at once: who fetches them shall not wait for the engine's next step to end."""
        held = {id: s.done for service in self.engine.services for id, s in service.ledger.held.items()}
        for id in self.states.keys() - held.keys():
            del self.states[id]
        for id in held.keys() - self.states.keys():
            self.states[id] = self.engine.packed(id) or {}
            self.send(wire.Held(id, held[id]))

    def _take(self, wait: bool) -> None:
        """Do all commands that have come; ``wait`` for one if there is none, until a deadline passes."""
        seconds = self.engine.next_deadline - self.engine.clock.now() if wait else 0.0
        try:
            came, command = self._inbox.get(block=wait, timeout=None if math.isinf(seconds) else max(seconds, 0.0))
            while True:
                self._do(command, came)
                came, command = self._inbox.get(block=False)
        except queue.Empty:
            return

    def _do(self, command: Message, came: float) -> None:
        match command:
            case wire.Feed():
                self._feed(command, came)
            case wire.Open():
                if self._open(Request(command.id, command.service, None, command.params), History()):
                    self.send(wire.Opened(command.id))
            case wire.Paint():
                slo = command.slo or self.slo.get(command.service, SLO())
                self._open(Request(command.id, command.service, None, command.params, slo), History())
            case wire.Add():
                history = History(command.said, command.elapsed, command.hold)
                self._take_in(command, history, command.salt, command.priority)
            case wire.Fetch():
                self.bridge.want(command)
            case Fetched():
                self._take_over(command)
            case wire.Release():
                self.engine.release(command.id)
            case wire.Embed():
                self._take_in(command, History())
            case _Prepared(request, history, error):
                if request.id in self._preparing:
                    self._preparing.discard(request.id)
                    self._open(request, history) if error is None else self._refuse(request, error)
            case wire.Abort():
                self._preparing.discard(command.id)
                self.bridge.forget(command.id)
                self.engine.abort(command.id, command.reason, command.choice)
            case wire.Measure():
                for service in self.engine.services:
                    service.gauges()
                self.send(wire.Stats({s.name: s.meter.snapshot() for s in self.engine.services}))
            case wire.Ping():
                self.send(wire.Pong())
            case wire.Trace():
                self.send(wire.Traced(self.engine.view(command.since)))
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
                    self._preparing.clear()
                    for service in self.engine.services:
                        for id in {s.req.id for s in service.ledger.streams}:
                            self.engine.abort(id)

    def _load(self, reload: wire.Reload) -> None:
        """On a thread of its own: most of loading leaves the engine's thread alone."""
        try:
            self._put(self.load(reload))
        except UserError as e:
            self._put(wire.NotReloaded(reload.service, e.message, e.param, e.code))
        except Exception as e:  # whatever it is, who asked must hear of it, and the running service goes on
            log.exception("service %s could not be loaded anew", reload.service)
            message = f"loading failed: {type(e).__name__}: {e}"
            self._put(wire.NotReloaded(reload.service, message, code="reload_failed"))

    def _take_in(self, add: wire.Add | wire.Embed, history: History, salt: str = "", priority: int = 0) -> None:
        """Open a request, or have done first what would take long on this thread."""
        prompt = np.frombuffer(add.prompt, np.int32)
        slo = add.slo or self.slo.get(add.service, SLO())
        request = Request(add.id, add.service, prompt, add.params, slo, salt=salt, priority=priority)
        try:
            work = self.engine.preparation(request)
        except UserError as e:
            self._refuse(request, e)
            return
        if work is None:
            self._open(request, history)
        else:
            self._preparing.add(request.id)
            self._helper.submit(self._prepare, request, history, work)

    def _prepare(self, request: Request, history: History, work: Callable[[], object]) -> None:
        """On the helper's thread."""
        try:
            work()
        except UserError as e:
            self._put(_Prepared(request, history, e))
        except Exception as e:  # a fault of ours: who waits for the request must hear of it
            self._put(_Prepared(request, history, UserError(f"preparing the request failed: {e!r:.200}")))
        else:
            self._put(_Prepared(request, history, None))

    def _feed(self, feed: wire.Feed, came: float) -> None:
        """Live input, which came at this time, perhaps in the middle of a step."""
        numbers = np.frombuffer(feed.data[: len(feed.data) // 4 * 4], np.float32)
        try:
            if numbers.nbytes != len(feed.data):
                message = f"a chunk must be float32 numbers, not {len(feed.data)} bytes"
                raise UserError(message, param="feed", code="invalid_chunk")
            self.engine.feed(feed.id, Chunk(numbers, feed.first, feed.last, came))
        except UserError as e:
            self.send(wire.Unfed(feed.id, e.message, e.param, e.code))

    def _take_over(self, fetched: Fetched) -> None:
        """Go on with what another engine held."""
        add = fetched.fetch.add
        if not self.bridge.forget(add.id):  # aborted meanwhile
            return
        why = fetched.why
        if not why:
            prompt = np.frombuffer(add.prompt, np.int32)
            slo = add.slo or self.slo.get(add.service, SLO())
            request = Request(add.id, add.service, prompt, add.params, slo, salt=add.salt, priority=add.priority)
            try:
                self.engine.take_over(request, add.said, add.elapsed, fetched.state)
            except UserError as e:
                why = e.message
            except Exception as e:  # a fault of ours, which must not cost the others their engine
                log.exception("request %s could not be taken over", shown_id(add.id))
                why = f"{type(e).__name__}: {e}"
        self.send(wire.Lost(add.id, why) if why else wire.Took(add.id))

    def _open(self, request: Request, history: History) -> bool:
        """Whether it could be."""
        try:
            self.engine.add(request, history.said, history.hold, history.elapsed)
        except UserError as e:
            self._refuse(request, e)
        except Exception:  # a fault of ours, which must not cost the others their engine
            log.exception("request %s could not be opened", shown_id(request.id))
            self.send(wire.Over(request.id, "error"))
        else:
            return True
        return False

    def _refuse(self, request: Request, error: UserError) -> None:
        self.send(wire.Refused(request.id, error.message, error.param, error.code))


def beat_of(event: Event) -> wire.Beat:
    """What a model of live input found, in the form that travels."""
    data: Read = event.data
    readings = [(r.kind, float(r.start), float(r.end), _plain(dict(r.data))) for r in data.readings]
    start, end, (lost, late, overrun) = float(data.start), float(data.end), map(int, data.counts)
    return wire.Beat(
        event.id, start, end, float(data.latency), data.chunks, data.missed, readings, lost, late, overrun, event.final
    )


def _plain(value: Any) -> Any:
    """Without anything of numpy's."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def painted_of(id: str, data: Shown) -> wire.Painted:
    """How far a picture has come, in the form that travels."""
    picture = b"" if data.picture is None else ((data.picture + 1) * 127.5).round().astype(np.uint8).tobytes()
    return wire.Painted(id, data.done, data.steps, data.encoded, picture, data.finish)


def spoken_of(event: Event, guesses: Mapping[tuple[str, int], Guesses]) -> wire.Spoken:
    """What a language model said in an engine event, in the form that travels. ``guesses``: the engine's, of that
    step."""
    data: Tokens = event.data
    logprobs = None
    if data.chosen and data.chosen[0].logprob is not None:
        logprobs = [(c.logprob or 0.0, list(c.top)) for c in data.chosen]
    ids = [c.id for c in data.chosen]
    if data.steps:
        settled = (0, 0, list(data.settled), data.steps, data.rows)
        return wire.Spoken(event.id, event.choice, ids, logprobs, data.finish, data.prompt, data.cached, *settled)
    if not guesses:
        return wire.Spoken(event.id, event.choice, ids, logprobs, data.finish, data.prompt, data.cached)
    drafted, kept = guesses.get((event.id, event.choice), NONE)
    return wire.Spoken(event.id, event.choice, ids, logprobs, data.finish, data.prompt, data.cached, drafted, kept)
