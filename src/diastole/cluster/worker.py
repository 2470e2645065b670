"""Worker: one engine of a cluster behind a TCP port: ``python -m diastole.cluster.worker``, or in a Ray actor.

Who starts it gives it a configuration and the cluster's secret (on standard input, as JSON) and learns the port (on
standard output). One router calls and speaks to the engine as a server does to its own; when it hangs up, the worker
ends. Other workers call for the state of what is held.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from diastole.cluster import states
from diastole.cluster.door import Address, answer, exactly
from diastole.cluster.fetching import STATE, Fetcher
from diastole.cluster.rings import Split
from diastole.frontend import wire
from diastole.frontend.calm import calm, stirring
from diastole.frontend.worker import hear, run_process
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.engine.service import Service
    from diastole.frontend.host import EngineHost

log = logging.getLogger("diastole.cluster")

ENGINE = b"e"  # the wish of a router
LONGEST_NAME = 1024  # bytes of a request's id
LARGEST_START = 1 << 20  # bytes of what is read from standard input
PATIENCE = 60.0  # seconds for the router to call
SENDING = 60.0  # seconds of a receiver that does not read


class Start(msgspec.Struct):
    """What a worker is given."""

    toml: str
    secret: bytes
    host: str = "127.0.0.1"  # to listen on
    cpus: list[int] = []  # to run on; none: all that there are
    rate: float = 0.0  # bytes per second at which states leave; 0: as fast as they can
    moves: bool = False  # streams come or go
    ffn: Split | None = None  # apart


class Worker:
    """One engine. ``serve`` is its whole life; until then it only listens.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        if start.cpus:
            os.sched_setaffinity(0, start.cpus)
        self._door = socket.create_server((start.host, 0), backlog=64)
        host, port = self._door.getsockname()[:2]
        self.address = Address(host, port)
        self._router: SimpleQueue[socket.socket] = SimpleQueue()
        self._host: EngineHost | None = None
        threading.Thread(target=self._listen, name="diastole-door", daemon=True).start()

    def serve(self) -> None:
        """Load the engine and serve the router that calls, until it hangs up or says so."""
        with self._door, self._router.get(timeout=PATIENCE) as link, ExitStack() as stack:
            encode, lock = msgspec.msgpack.Encoder().encode, threading.Lock()

            def send(reply: wire.Reply) -> None:
                body = encode(reply)
                with lock:
                    link.sendall(len(body).to_bytes(wire.FRAME_BYTES, "little") + body)

            try:
                host = self._build(send, stack)
            except UserError as e:
                send(wire.Failed(e.message, e.param))
                return
            threading.Thread(target=hear, args=(link, host.put, self.die), name="diastole-router", daemon=True).start()
            with calm(), contextlib.suppress(BrokenPipeError, ConnectionResetError):
                host.run()
                host.engine.close()

    def _build(self, send: Callable[[wire.Reply], None], stack: ExitStack) -> EngineHost:
        from diastole.cluster.afd import ffn_apart, halves
        from diastole.config import from_toml
        from diastole.frontend import logs
        from diastole.frontend.assembly import build_engine, cost_folder, load_service, slos
        from diastole.frontend.host import EngineHost

        config = from_toml(self._start.toml)
        logs.start(config.server)
        ffn, costs = self._start.ffn, cost_folder(config)
        if ffn is not None:
            near, far = halves(sorted(os.sched_getaffinity(0)))
            os.sched_setaffinity(0, near)
            config, costs = replace(config, engine=replace(config.engine, threads=len(near))), None
        engine, cards, kernels = build_engine(config, costs)
        if ffn is not None:
            stack.enter_context(ffn_apart(engine.services, config, ffn, far))
        for service in engine.services if self._start.moves else ():
            portable(service)
        send(wire.Ready(cards, kernels))
        bridge = Fetcher(self._start.secret, lambda fetched: host.put(fetched))
        self._host = host = EngineHost(engine, send, slos(config), stirring(load_service), bridge)
        return host

    # ---- who calls

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # the door is closed
            while True:
                sock, _ = self._door.accept()
                try:
                    threading.Thread(target=self._greet, args=(sock,), name="diastole-greet", daemon=True).start()
                except (RuntimeError, MemoryError):
                    sock.close()  # no room for one more thread: who called finds another way, and others may come

    def _greet(self, sock: socket.socket) -> None:
        try:
            wish = answer(sock, self._start.secret)
        except OSError as e:
            log.warning("a call was not answered: %s", e)
            sock.close()
            return
        if wish == ENGINE:
            self._router.put(sock)
            return
        with sock, contextlib.suppress(OSError):
            if wish == STATE:
                self._give(sock)

    def _give(self, sock: socket.socket) -> None:
        """States of held requests, one after the other, to another worker."""
        link = states.TokenBucket(self._start.rate) if self._start.rate else None
        while True:
            sock.settimeout(None)  # it may ask again much later
            size = int.from_bytes(exactly(sock, wire.FRAME_BYTES), "little")
            if size > LONGEST_NAME:
                return
            name = exactly(sock, size).decode("utf-8", "replace")
            sock.settimeout(SENDING)
            states.send(sock, {} if self._host is None else self._host.states.get(name, {}), link)

    def die(self) -> None:
        """End the process as it is."""
        os._exit(0)


def portable(service: Service) -> None:
    """Raises:
    UserError: this service says no texts, or its streams have notes, or state in forms, that do not travel with their
        pages.
    """
    if not {"kv", "inside"} <= service.state.keys():
        message = f"{service.name} does not read a prompt and go on from there"
        raise UserError(f"{message}: prefill and decode cannot be kept apart; use replicas", param="model")
    ledger, loop, inside, kv = service.ledger, service.loop, service.state["inside"], service.state["kv"]
    notes = inside.select is not None or inside.probes or getattr(loop, "refresh", None) is not None
    if ledger.pools.keys() != {"kv"} or not kv.passive or notes or getattr(loop, "block", 1) > 1:
        message = f"{service.name} uses techniques that remember more of a stream than its keys and values"
        raise UserError(f"{message}: prefill and decode cannot be kept apart; use replicas", param="use")


def main() -> None:
    """As a process of its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the router decides when we stop
    start = msgspec.json.decode(sys.stdin.buffer.readline(LARGEST_START), type=Start)
    worker = Worker(start)
    print(msgspec.json.encode(worker.address).decode(), flush=True)
    worker.serve()


if __name__ == "__main__":
    run_process(main)
