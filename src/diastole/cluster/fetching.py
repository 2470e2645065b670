"""Fetching: a decode engine takes over what prefill engines hold, when it has room (DistServe, section 4.3: pull, not
push, so that the prefill side's memory is the buffer for bursts).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from diastole.cluster import states
from diastole.cluster.door import Address, call
from diastole.engine.engine import Engine
from diastole.frontend import wire
from diastole.frontend.host import Fetched
from diastole.state.pages import PAGE, PagePool

STATE = b"s"  # the wish of who calls for a state
WAITING = 0.05  # share of the pages whose states may have been fetched and wait: DistServe's public code
SECONDS = 60.0  # of silence in the middle of a state


class Fetcher:
    """A ``Bridge``. All methods belong to the engine's thread; each state comes on a thread of its own.

    Args:
        put: hands what was fetched to the engine's thread.
    """

    def __init__(self, secret: bytes, put: Callable[[Fetched], None]) -> None:
        self._secret, self._put = secret, put
        self._queue: deque[wire.Fetch] = deque()
        self._wanted: set[str] = set()  # from ``want`` to ``forget``
        self._coming: dict[str, int] = {}  # pages of what is being fetched

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
                threading.Thread(target=self._fetch, args=(fetch, most), name="diastole-fetch", daemon=True).start()
            self._queue.popleft()

    def _room(self, engine: Engine, pool: PagePool, service: str, pages: int) -> bool:
        """Whether so many pages may be fetched now: always if there is nothing else to do."""
        if not engine.busy and not self._coming:
            return True
        arrived = sum(-(-s.done // PAGE) for s in engine.service(service).ledger.waiting)
        coming = sum(self._coming.values())
        return arrived + coming <= WAITING * pool.pages and arrived + coming + pages <= pool.free

    def _fetch(self, fetch: wire.Fetch, most: int) -> None:
        """On a thread of its own."""
        try:
            with call(Address(fetch.host, fetch.port), self._secret, STATE) as sock:
                sock.settimeout(SECONDS)
                name = fetch.held.encode()
                sock.sendall(len(name).to_bytes(wire.FRAME_BYTES, "little") + name)
                state = states.receive(sock, most)
            self._put(Fetched(fetch, state, "" if state else "it is not held there any more"))
        except Exception as e:  # whatever it is, who waits must hear of it
            self._put(Fetched(fetch, {}, f"{type(e).__name__}: {e}"))
