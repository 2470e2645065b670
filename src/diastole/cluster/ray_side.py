"""The process that speaks to Ray for a server: ``python -m diastole.cluster.ray_side``.

Ray ends a process that is connected to it when its head is gone. So the server is not connected: this child is, and is
started anew once Ray is there again. Orders come as lines of JSON on standard input, what happens is said on standard
output. When the input ends, so does the child, and its actors with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from diastole.cluster.worker import Start, Worker

SECONDS = 120.0  # for an actor to be placed and to listen
ANSWERING = 10.0  # for Ray to say which nodes it has
LONGEST = 1 << 20  # bytes of a line


class Join(msgspec.Struct, tag=True):
    """The first order: which Ray, and how many processors each actor asks it for."""

    address: str
    cpus: float


class Place(msgspec.Struct, tag=True):
    """Start a worker, known by this number from now on."""

    nth: int
    start: Start


class Kill(msgspec.Struct, tag=True):
    """End it at once."""

    nth: int


class Joined(msgspec.Struct, tag=True):
    """Ray answers."""


class Apart(msgspec.Struct, tag=True):
    """It does not, and why; nothing else follows."""

    why: str


class Listens(msgspec.Struct, tag=True):
    """A worker is where it was to be."""

    nth: int
    host: str
    port: int


class Homeless(msgspec.Struct, tag=True):
    """A worker did not come up, and why."""

    nth: int
    why: str
    room: bool  # Ray had room for it: it is the worker that failed


class Ended(msgspec.Struct, tag=True):
    """A worker that listened is gone."""

    nth: int
    how: str


Order = Place | Kill
News = Joined | Apart | Listens | Homeless | Ended


class Engine:
    """The actor."""

    def __init__(self, start: bytes) -> None:
        import ray

        given = msgspec.json.decode(start, type=Start)
        if given.host != "127.0.0.1":
            given.host = ray.util.get_node_ip_address()
        self._worker = Worker(given)

    def address(self) -> tuple[str, int]:
        host, port = self._worker.address
        return host, port

    def serve(self) -> None:
        self._worker.serve()


class Actors:
    """Those that were asked for, by number."""

    def __init__(self, ray: Any, cpus: float, say: Callable[[News], None]) -> None:
        self._ray, self._say = ray, say
        self._kind = ray.remote(num_cpus=cpus, max_restarts=0)(Engine)
        self._there: dict[int, Any] = {}

    def place(self, order: Place) -> None:
        """The whole life of one, on a thread of its own."""
        if not self._joined():
            self._say(Homeless(order.nth, "the Ray that was joined is gone", room=False))
            return
        actor = self._kind.remote(msgspec.json.encode(order.start))
        self._there[order.nth] = actor
        try:
            host, port = self._ray.get(actor.address.remote(), timeout=SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            self.kill(order.nth)
            self._say(Homeless(order.nth, f"Ray has found no room for a worker in {SECONDS:.0f} s", room=False))
            return
        except Exception as e:  # Ray has many
            self._say(Homeless(order.nth, f"a worker did not come up: {_briefly(e)}", room=True))
            return
        self._say(Listens(order.nth, host, port))
        how = "in good order"
        try:
            self._ray.get(actor.serve.remote())
        except Exception as e:
            how = f"as Ray says: {_briefly(e)}"
        self._there.pop(order.nth, None)
        self._say(Ended(order.nth, how))

    def _joined(self) -> bool:
        """Whether Ray still knows the node of this process. After its head was started anew it does not, and never does
        what it is asked for."""
        known: SimpleQueue[bool] = SimpleQueue()

        def look() -> None:
            try:
                mine = self._ray.get_runtime_context().get_node_id()
                known.put(any(node["NodeID"] == mine and node["Alive"] for node in self._ray.nodes()))
            except Exception:  # Ray has many
                known.put(False)

        threading.Thread(target=look, daemon=True).start()
        try:
            return known.get(timeout=ANSWERING)
        except Empty:
            return False

    def kill(self, nth: int) -> None:
        actor = self._there.pop(nth, None)
        if actor is not None:
            self._ray.kill(actor)


def _briefly(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def joined(address: str) -> Any:
    """Ray, connected.

    Raises:
        Exception: it is not there; Ray has many.
    """
    kept = Path.home() / ".ray" / "auth_token"
    if kept.exists() or os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray asks for a token where there is one, but shows it only so
    import ray

    if address:
        ray.init(address=address, log_to_driver=False)
    else:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    return ray


def main() -> None:
    """As a process of its own."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints is none of ours
    lock = threading.Lock()

    def say(news: News) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            out.write(msgspec.json.encode(news) + b"\n")
            out.flush()

    lines = sys.stdin.buffer
    join = msgspec.json.decode(lines.readline(LONGEST), type=Join)
    try:
        ray = joined(join.address)
    except Exception as e:
        say(Apart(_briefly(e)))
        return
    actors = Actors(ray, join.cpus, say)
    say(Joined())
    orders = msgspec.json.Decoder(Order)
    while line := lines.readline(LONGEST):
        match orders.decode(line):
            case Place() as order:
                threading.Thread(target=actors.place, args=(order,), daemon=True).start()
            case Kill(nth):
                actors.kill(nth)
    ray.shutdown()
    os._exit(0)  # threads may wait for actors that will never say anything


if __name__ == "__main__":
    main()
