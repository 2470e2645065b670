"""Fetching: a decode engine takes over what prefill engines hold, when it has room (DistServe, section 4.3: pull, not
push, so that the prefill side's memory is the buffer for bursts).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from diastole.cluster import states
from diastole.cluster.door import Address, call
from diastole.engine.engine import Engine
from diastole.frontend import wire
from diastole.frontend.host import Fetched
from diastole.state.pages import PAGE, PagePool

STATE = b"s"  # the wish of who calls for a state
WAITING = 0.05  # share of the pages whose states may have been fetched and wait: DistServe's public code
SECONDS = 60.0  # of silence in the middle of a state
LAST = 5.0  # seconds in which somebody may still ask a source that is over


class Fetcher:
    """A ``Bridge``. All methods belong to the engine's thread.

    Args:
        put: hands what was fetched to the engine's thread.
    """

    def __init__(self, secret: bytes, put: Callable[[Fetched], None]) -> None:
        self._secret, self._put = secret, put
        self._queue: deque[wire.Fetch] = deque()
        self._wanted: set[str] = set()  # from ``want`` to ``forget``
        self._coming: dict[str, int] = {}  # pages of what is being fetched
        self._sources: dict[Address, Source] = {}

    def want(self, fetch: wire.Fetch) -> None:
        self._queue.append(fetch)
        self._wanted.add(fetch.add.id)

    def forget(self, id: str) -> bool:
        self._coming.pop(id, None)
        wanted = id in self._wanted
        self._wanted.discard(id)
        return wanted

    def pump(self, engine: Engine) -> None:
        while self._queue:
            fetch = self._queue[0]
            if fetch.add.id in self._wanted:
                pool = engine.service(fetch.add.service).ledger.pools["kv"]
                assert isinstance(pool, PagePool)
                pages = -(-(fetch.units + 1) // PAGE)
                if not self._room(engine, pool, fetch.add.service, pages):
                    return
                self._coming[fetch.add.id] = pages
                most = pool.pages * max(pool.store.pack([0]).nbytes, 1) + (1 << 20)
                self._source(Address(fetch.host, fetch.port)).ask(fetch, most)
            self._queue.popleft()

    def _source(self, address: Address) -> Source:
        source = self._sources.get(address)
        if source is None or source.over:
            source = self._sources[address] = Source(address, self._secret, self._put)
        return source

    def _room(self, engine: Engine, pool: PagePool, service: str, pages: int) -> bool:
        """Whether so many pages may be fetched now: always if there is nothing else to do."""
        if not engine.busy and not self._coming:
            return True
        arrived = sum(-(-s.done // PAGE) for s in engine.service(service).ledger.waiting)
        coming = sum(self._coming.values())
        return arrived + coming <= WAITING * pool.pages and arrived + coming + pages <= pool.free


class Source:
    """A worker whose states are fetched, one after the other, on a thread and over a connection that stay."""

    def __init__(self, address: Address, secret: bytes, put: Callable[[Fetched], None]) -> None:
        self._address, self._secret, self._put = address, secret, put
        self._asked: SimpleQueue[tuple[wire.Fetch, int]] = SimpleQueue()
        self.over = False  # the connection broke: another source is to be made
        threading.Thread(target=self._run, name="diastole-fetch", daemon=True).start()

    def ask(self, fetch: wire.Fetch, most: int) -> None:
        """Fetch this, of at most so many bytes."""
        self._asked.put((fetch, most))

    def _run(self) -> None:
        why = ""
        try:
            with call(self._address, self._secret, STATE) as sock:
                sock.settimeout(SECONDS)
                while True:
                    fetch, most = self._asked.get()
                    try:
                        name = fetch.held.encode()
                        sock.sendall(len(name).to_bytes(wire.FRAME_BYTES, "little") + name)
                        state = states.receive(sock, most)
                    except BaseException:
                        self._asked.put((fetch, most))  # it is told below with the others
                        raise
                    self._put(Fetched(fetch, state, "" if state else "it is not held there any more"))
        except Exception as e:  # whatever it is, who waits must hear of it
            why = f"{type(e).__name__}: {e}"
        self.over = True
        with contextlib.suppress(Empty):
            while True:  # those that were asked before anybody saw that it is over, too
                fetch, _ = self._asked.get(timeout=LAST)
                self._put(Fetched(fetch, {}, why))
