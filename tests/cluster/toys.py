"""A cluster of toy engines on threads of this process, whose deaths are hung-up connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from diastole.clock import RealClock
from diastole.cluster.fetching import Fetcher
from diastole.cluster.placing import Nowhere
from diastole.cluster.replanning import Replanning
from diastole.cluster.router import Cluster
from diastole.cluster.worker import Start, Worker
from diastole.config import Config
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.service import Service
from diastole.frontend import wire
from diastole.frontend.host import EngineHost
from diastole.params import SamplingParams
from engine.toy import VOCAB, assert_clean, toy_service


class ToyWorker(Worker):
    """A worker around a toy engine."""

    def __init__(self, start: Start, services: Callable[[], list[Service]], slow: threading.Event) -> None:
        super().__init__(start)
        self.services, self.slow = services, slow
        self.engine: Engine | None = None
        self.sockets: list[socket.socket] = []
        self.dead = False
        self.done = threading.Event()

    def _build(self, send: Callable[[wire.Reply], None], stack: ExitStack) -> EngineHost:
        self.engine = Engine(self.services(), RealClock(), LeastSlack())
        step = self.engine.step

        def slowly() -> Any:
            self.slow.wait(0.003)
            if self.dead:
                raise ConnectionResetError("dead")
            return step()

        self.engine.step = slowly  # type: ignore[method-assign]
        send(wire.Ready([wire.Card("lm", 1024, VOCAB, 2048)], "toy"))
        bridge = Fetcher(self._start.secret, lambda fetched: host.put(fetched))
        self._host = host = EngineHost(self.engine, send, {}, lambda reload: (_ for _ in ()).throw(ValueError), bridge)
        return host

    def _greet(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        super()._greet(sock)

    def die(self) -> None:
        self.dead = True
        if self._host is not None:
            self._host.put(wire.Quit(now=True))

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.serve()
        self.done.set()


class Toys:
    """A ``Placer``."""

    def __init__(self, pages: int = 64, also: Callable[[], list[Service]] = list) -> None:
        self.services = lambda: [toy_service(pages=pages), *also()]
        self.workers: list[ToyWorker] = []
        self.fast = threading.Event()  # set: engines do not wait between steps
        self.barren = False  # no more come
        self.homeless = 0  # so many more find no place

    async def place(self, start: Start) -> Toy:
        if self.barren:
            raise ConnectionError("no room")
        if self.homeless:
            self.homeless -= 1
            raise Nowhere("no place")
        worker = ToyWorker(start, self.services, self.fast)
        self.workers.append(worker)
        threading.Thread(target=worker.run, daemon=True).start()
        return Toy(worker)

    def close(self) -> None:
        """Nothing is held."""

    def living(self) -> list[ToyWorker]:
        return [w for w in self.workers if not w.dead]


class Toy:
    """A ``Placed``."""

    def __init__(self, worker: ToyWorker) -> None:
        self.worker, self.address = worker, worker.address

    def alive(self) -> bool:
        return not self.worker.dead

    def kill(self) -> None:
        self.worker.dead = True
        for sock in (self.worker._door, *self.worker.sockets):  # as the kernel does for a process
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    async def ended(self) -> str:
        await asyncio.to_thread(self.worker.done.wait, 5)
        self.worker.dead = True
        return "as a toy does"

    def processes(self) -> Sequence[int]:
        return []


class Front:
    """What a server would do with the cluster's replies."""

    def __init__(
        self,
        roles: Sequence[Any],
        pages: int = 64,
        also: Callable[[], list[Service]] = list,
        replanning: Replanning | None = None,
    ) -> None:
        self.toys = Toys(pages, also)
        self.cluster = Cluster(Config(), roles, self.toys, replanning=replanning)
        self.said: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[tuple[str, int], str] = {}
        self.over: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.vectors: dict[str, np.ndarray[Any, Any]] = {}
        self.others: list[wire.Reply] = []
        self.lost = False

    async def __aenter__(self) -> Front:
        await self.cluster.start(self._reply, self._loss)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cluster.stop()

    def _loss(self) -> None:
        self.lost = True

    def _reply(self, reply: wire.Reply) -> None:
        match reply:
            case wire.Heard(spoken):
                for s in spoken:
                    self.said.setdefault((s.id, s.choice), []).extend(s.ids)
                    if s.finish:
                        assert (s.id, s.choice) not in self.finished, "it ended twice"
                        self.finished[s.id, s.choice] = s.finish
            case wire.Over(id, finish):
                self.over[id] = finish
            case wire.Refused(id, message):
                self.refused[id] = message
            case wire.Vector(id, data):
                self.vectors[id] = np.frombuffer(data, np.float32)
            case _:
                self.others.append(reply)

    def ask(self, id: str, prompt: Sequence[int], most: int = 8, **params: Any) -> None:
        wish = SamplingParams(max_tokens=most, temperature=0, seed=0, **params)
        self.cluster.put(wire.Add(id, "lm", np.array(prompt, np.int32).tobytes(), wish))

    async def until(self, true: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for it; it is a failure if it does not come."""
        for _ in range(int(seconds / 0.005)):
            if true():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never happened")

    async def all_done(self, count: int) -> None:
        await self.until(lambda: len(self.finished) + len(self.over) + len(self.refused) >= count)
        assert len(self.cluster.journal) == 0

    async def clean(self) -> None:
        """No engine that lives holds anything."""

        def idle() -> bool:
            return all(w.engine is not None and not w.engine.busy for w in self.toys.living())

        await self.until(idle)
        for worker in self.toys.living():
            assert worker.engine is not None
            assert_clean(worker.engine.services[0])
