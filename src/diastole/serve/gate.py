"""Gate: who may come in, how many are inside, and when everybody must leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from diastole.serve.errors import ApiError


class Gate:
    """Counts requests that use the engine. All methods belong to one event loop.

    Args:
        room: requests inside at once, at most; more are turned away.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.inside = 0
        self.draining = False
        self.aborted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside.

        Raises:
            ApiError: 503, the server is going down or full.
        """
        if self.draining:
            raise shutting_down()
        if self.inside >= self.room:
            message = f"The server is at its limit of {self.room} requests at once. Try again shortly."
            raise ApiError(503, message, code="overloaded", retry_after=1)
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if self.inside == 0:
                self._empty.set()

    async def empty(self, seconds: float) -> bool:
        """Wait until nobody is inside, at most so long; whether that came true. An abort during
        the wait ends it."""
        waits = [asyncio.create_task(self._empty.wait())]
        if not self.aborted.is_set():
            waits.append(asyncio.create_task(self.aborted.wait()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.inside == 0

    def abort(self) -> None:
        """Let nobody in, and ask everybody inside to leave now."""
        self.draining = True
        self.aborted.set()


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
