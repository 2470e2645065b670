"""Members: the engines of a cluster, each with its successors. One that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from diastole.cluster.door import Address, call
from diastole.cluster.placing import Nowhere, Placed, Placer
from diastole.cluster.worker import ENGINE, Start
from diastole.frontend import wire
from diastole.frontend.link import Wired
from diastole.types import UserError

log = logging.getLogger("diastole.cluster")

Role = Literal["prefill", "decode", "both"]
LONGEST_WAIT = 30.0  # seconds between two attempts to replace one
REFUSALS = 5  # attempts in a row that fail; then it is given up
HOMELESS = 20  # attempts in a row that find no place for it, nearly eight minutes; then too
BEATS = 4  # looks at an engine in the time that it has to answer


class Member(Wired):
    """One engine, and those that replace it.

    Args:
        timeout: seconds in which an engine must answer between two steps; 0: no matter.
        on_reply: is told what it says.
        on_change: is called when it is lost, when it is back, and when it is given up.
    """

    def __init__(
        self,
        name: str,
        role: Role,
        placer: Placer,
        start: Start,
        timeout: float,
        on_reply: Callable[[Member, wire.Reply], None],
        on_change: Callable[[Member], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__()
        self.name, self.role = name, role
        self.there = False  # commands reach it
        self.given_up = False
        self.restarts = 0
        self._placer, self._start, self._timeout = placer, start, timeout
        self._on_reply, self._on_change, self._sleep = on_reply, on_change, sleep
        self._placed: Placed | None = None
        self._gone = asyncio.Event()
        self._pong = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        """Where others fetch states from it."""
        assert self._placed is not None
        return self._placed.address

    async def begin(self) -> wire.Ready:
        """Start the first engine, and keep one running from then on.

        Raises:
            UserError: it cannot start, and why.
        """
        ready = await self._come_up()
        self._keeping = asyncio.create_task(self._keep())
        return ready

    async def _come_up(self) -> wire.Ready:
        self._placed = await self._placer.place(self._start)
        self._gone.clear()
        try:
            sock = await asyncio.to_thread(call, self._placed.address, self._start.secret, ENGINE)
            ready = await self.greeted(await self.open(sock), self._heard, self._lost)
        except (EOFError, OSError) as e:
            self._placed.kill()
            raise UserError(f"{self.name} ended {await self._placed.ended()} before it was ready ({e})") from None
        except BaseException:
            self._placed.kill()
            raise
        self.there = True
        return ready

    def _heard(self, reply: wire.Reply) -> None:
        if isinstance(reply, wire.Pong):
            self._pong.set()
        else:
            self._on_reply(self, reply)

    def _lost(self) -> None:
        was_there, self.there = self.there, False
        self._gone.set()
        if was_there:
            self._on_change(self)

    # ---- staying alive

    async def _keep(self) -> None:
        while not self.given_up:
            await self._outlive()
            assert self._placed is not None
            self._placed.kill()
            log.error("%s ended %s; another one is started", self.name, await self._placed.ended())
            self.hang_up()
            self._lost()
            await self._come_back()
            self._on_change(self)

    async def _come_back(self) -> None:
        """Another one in its place, or it is given up."""
        refusals = homeless = 0
        while not self.there and not self.given_up:
            await self._sleep(min(2.0 ** (refusals + homeless - 1), LONGEST_WAIT) if refusals + homeless else 0)
            self.restarts += 1
            try:
                await self._come_up()
            except Exception as e:  # a UserError, or whatever a machine comes up with
                if isinstance(e, Nowhere):
                    homeless += 1
                else:
                    refusals += 1
                log.error("%s could not be restarted (attempt %d): %s", self.name, refusals + homeless, e)
                self.given_up = refusals == REFUSALS or homeless == HOMELESS

    async def _outlive(self) -> None:
        """Return when the engine is gone or hangs."""
        gone = asyncio.create_task(self._gone.wait())
        hangs = asyncio.create_task(self._hangs())
        try:
            await asyncio.wait([gone, hangs], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, hangs):
                task.cancel()
            await asyncio.gather(gone, hangs, return_exceptions=True)

    async def _hangs(self) -> None:
        if not self._timeout:
            await asyncio.Event().wait()
        answered = True
        while answered:
            self._pong.clear()
            self.put(wire.Ping())
            for _ in range(BEATS):  # looks are counted, not only time: it may be this program that stood still
                await self._sleep(self._timeout / BEATS)
                if answered := self._pong.is_set():
                    break
        log.error("%s has not answered for %g s and is killed", self.name, self._timeout)

    # ---- the end

    async def end(self) -> None:
        """No other is started; this one ends once it has nothing to do, or soon."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._placed is not None:
            if self.there:
                with contextlib.suppress(ConnectionError):
                    self.put(wire.Quit(now=True))
            await self._placed.ended()
        self.there = False
        self.hang_up()

    def kill(self) -> None:
        """At once."""
        if self._placed is not None:
            self._placed.kill()

    def processes(self) -> Sequence[int]:
        return [] if self._placed is None else self._placed.processes()
