"""Supervisor: keeps an engine running. When one dies or hangs, its requests end with an error and another starts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from diastole.frontend import wire
from diastole.frontend.client import EngineClient
from diastole.frontend.link import Link
from diastole.types import UserError

log = logging.getLogger("diastole.frontend")

LONGEST_WAIT = 30.0  # seconds between two attempts, at most
STEADY = 60.0  # seconds of life after which an engine's death is not counted with earlier ones
REFUSALS = 5  # starts in a row that fail with a reason; no more are tried then
BEATS = 4  # looks at an engine in the time that it has to answer


class Supervisor:
    """One engine after the other, each with a client of its own.

    Args:
        connect: a link to an engine that is not started yet.
        timeout: seconds in which an engine must answer between two steps, or it is taken to hang; 0: no matter.
        on_ready: is told what each new engine says when it is ready.
        sleep, now: the time, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        timeout: float,
        on_ready: Callable[[wire.Ready], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = EngineClient(connect())  # of the present engine
        self.restarts = 0  # engines started after the first
        self.given_up = False
        self._connect, self._timeout, self._on_ready = connect, timeout, on_ready
        self._sleep, self._now = sleep, now
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the first engine. If that fails, no other is tried.

        Raises:
            UserError: the engine cannot start, and why.
        """
        self._on_ready(await self.client.start())
        self._watch = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the engine and start no other."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.client.stop(now=True)

    async def _keep(self) -> None:
        early = 0  # deaths in a row that came soon after a start
        while not self.given_up:
            born = self._now()
            await self._outlive()
            early = 1 if self._now() - born >= STEADY else early + 1
            ending = await self.client.kill()
            log.error("%s; another one is started", ending)
            await self._revive(early)

    async def _outlive(self) -> None:
        """Return when the engine has ended or hangs."""
        ended = asyncio.create_task(self.client.ended.wait())
        hangs = asyncio.create_task(self._hangs())
        try:
            await asyncio.wait([ended, hangs], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, hangs):
                task.cancel()
            await asyncio.gather(ended, hangs, return_exceptions=True)

    async def _hangs(self) -> None:
        """Return when the engine has not answered for too long. Looks are counted, not only time: if it was this
        program that stood still, the engine has not had its time."""
        if not self._timeout:
            await asyncio.Event().wait()
        answered = True
        while answered:
            pong = self.client.ping()
            for _ in range(BEATS):
                await self._sleep(self._timeout / BEATS)
                if answered := pong.done():
                    break
        log.error("the engine has not answered for %g s and is killed", self._timeout)

    async def _revive(self, early: int) -> None:
        """Start another engine, waiting longer after each failure; gives up if it is refused again and again."""
        refusals = 0
        while True:
            await self._sleep(0 if early == 1 else min(2.0 ** (early - 2), LONGEST_WAIT))
            self.client = EngineClient(self._connect())
            self.restarts += 1
            try:
                self._on_ready(await self.client.start())
                return
            except UserError as e:
                refusals += 1
                log.error("the engine could not be restarted (attempt %d): %s", refusals, e.message)
                if refusals == REFUSALS:
                    log.critical("the engine is given up after %d failed starts: %s", refusals, e.message)
                    self.given_up = True
            except Exception:  # no process could be made, say: that may pass
                refusals = 0
                log.exception("the engine could not be restarted")
            with suppress(Exception):
                await self.client.kill()
            if self.given_up:
                return
            early += 1
