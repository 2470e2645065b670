"""Workers as Ray actors: Ray chooses the machine, starts the process and says when it dies; what engines and router say
to each other does not pass through Ray. Who speaks to Ray is a child (``ray_side``), which the server outlives.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError

import msgspec

from diastole.cluster.door import Address
from diastole.cluster.placing import Nowhere
from diastole.cluster.ray_side import SECONDS, Apart, Ended, Homeless, Join, Joined, Kill, Listens, News, Order, Place
from diastole.cluster.worker import Start
from diastole.types import UserError

JOINING = 60.0  # seconds for Ray to answer


class OnRay:
    """A Ray cluster: one that runs already, or one of this machine that ends with this process. If it is lost (its head
    is restarted, this machine's node dies), who is placed next joins it anew.

    Args:
        address: as for ``ray.init``: "auto", "host:port" or "ray://host:port"; empty: one is started here.
        cpus: that each worker asks Ray for.

    Raises:
        UserError: Ray is not installed, or does not answer there.
    """

    def __init__(self, address: str = "", cpus: float = 1.0) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("Ray is not installed: pip install 'diastole[cluster]'", param="address")
        self._join = Join(address, cpus)
        self._one_by_one = asyncio.Lock()
        try:
            self._side = Side(self._join)
        except Nowhere as e:
            raise UserError(e.message, param="address") from None

    async def place(self, start: Start) -> Actor:
        start = msgspec.structs.replace(start, host="" if self._join.address else "127.0.0.1")
        async with self._one_by_one:  # those who lost the same Ray join the next one together
            if not self._side.alive():
                self._side = await asyncio.to_thread(Side, self._join)
            side = self._side
        try:
            return await side.place(start)
        except Nowhere:
            if not side.used():  # perhaps it is this connection: the next attempt joins anew
                await asyncio.to_thread(side.close)
            raise

    def close(self) -> None:
        self._side.close()


class Side:
    """A child that speaks to Ray.

    Raises:
        Nowhere: Ray does not answer.
    """

    def __init__(self, join: Join) -> None:
        command = [sys.executable, "-m", "diastole.cluster.ray_side"]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Ray's last words are a stack of C++
            start_new_session=True,  # an interrupt from the terminal is for the server
        )
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._wanted: dict[int, Future[Actor]] = {}
        self._actors: dict[int, Actor] = {}
        self._over = False  # nothing more will be heard
        late = threading.Timer(JOINING, self._child.kill)
        late.start()
        try:
            self._say(join)
            news = self._hear()
        finally:
            late.cancel()
        if not isinstance(news, Joined):
            self.close()
            why = news.why if isinstance(news, Apart) else f"nothing was heard in {JOINING:.0f} s"
            where = f"at {join.address!r}" if join.address else "on this machine"
            raise Nowhere(f"Ray does not answer {where}: {why}")
        threading.Thread(target=self._listen, name="diastole-ray", daemon=True).start()

    def alive(self) -> bool:
        return not self._over

    def used(self) -> bool:
        """Workers run that would end with it."""
        return bool(self._actors)

    async def place(self, start: Start) -> Actor:
        """Raises:
        Nowhere: Ray has no room, or is gone.
        UserError: it has, but the worker does not come up.
        """
        nth, wanted = next(self._numbers), Future[Actor]()
        with self._lock:
            self._wanted[nth] = wanted
            over = self._over
        if over:
            raise Nowhere("Ray is gone")
        self._say(Place(nth, start))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(wanted), 2 * SECONDS)
        except TimeoutError:
            raise Nowhere("Ray does not say what became of a worker") from None

    def kill(self, nth: int) -> None:
        self._say(Kill(nth))

    def close(self) -> None:
        """The child ends, and its actors with it."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _say(self, order: Order | Join) -> None:
        assert self._child.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):  # it is gone: who waits is told by _listen
            self._child.stdin.write(msgspec.json.encode(order) + b"\n")
            self._child.stdin.flush()

    def _hear(self) -> News | None:
        assert self._child.stdout is not None
        try:
            return msgspec.json.decode(self._child.stdout.readline(), type=News)
        except (ValueError, msgspec.MsgspecError):
            return None

    def _listen(self) -> None:
        while (news := self._hear()) is not None:
            match news:
                case Listens(nth, host, port):
                    actor = self._actors[nth] = Actor(self, nth, Address(host, port))
                    self._answer(nth, actor)
                case Homeless(nth, why, room):
                    self._answer(nth, UserError(why) if room else Nowhere(why))
                case Ended(nth, how):
                    self._actors.pop(nth).went(how)
        with self._lock:
            self._over = True
            wanted, self._wanted = self._wanted, {}
        for future in wanted.values():
            with contextlib.suppress(InvalidStateError):  # who waited has gone
                future.set_exception(Nowhere("Ray is gone"))
        for actor in list(self._actors.values()):
            actor.went("with the Ray that it ran on")

    def _answer(self, nth: int, answer: Actor | UserError) -> None:
        with self._lock:
            future = self._wanted.pop(nth)
        try:
            if isinstance(answer, Actor):
                future.set_result(answer)
            else:
                future.set_exception(answer)
        except InvalidStateError:  # who waited has gone
            self.kill(nth)


class Actor:
    """One of them."""

    def __init__(self, side: Side, nth: int, address: Address) -> None:
        self._side, self._nth, self.address = side, nth, address
        self._gone, self._how = threading.Event(), ""

    def went(self, how: str) -> None:
        """It has ended."""
        self._how = how
        self._gone.set()

    def alive(self) -> bool:
        return not self._gone.is_set()

    def kill(self) -> None:
        self._side.kill(self._nth)

    async def ended(self) -> str:
        if not await asyncio.to_thread(self._gone.wait, 5):
            self.kill()
            await asyncio.to_thread(self._gone.wait, 5)
        return self._how or "and Ray does not say how"

    def processes(self) -> Sequence[int]:
        return []
