"""Server-sent events, in the words of the exchange's dialect: events, pings in silence, and an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from diastole.serve.errors import Gone
from diastole.serve.exchange import Exchange

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must not collect events
]


class Events:
    """An event stream on an exchange, an asynchronous context.

    It opens with the first event or after the first silence, whichever comes first: until then a fault can still be
    answered with a status of its own.

    Args:
        hello: events that precede all others.
        ping_seconds: longest silence.
    """

    def __init__(self, exchange: Exchange, hello: Sequence[Any], ping_seconds: float) -> None:
        self._exchange, self._ping_seconds = exchange, ping_seconds
        self._hello = b"".join(map(exchange.dialect.event, hello))
        self._opening = asyncio.Lock()
        self._last = time.monotonic()

    async def __aenter__(self) -> Events:
        self._pinger = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pinger.cancel()
        await asyncio.gather(self._pinger, return_exceptions=True)

    async def put(self, event: Any) -> None:
        """Send one event, given as a struct or plain values."""
        await self._write(self._exchange.dialect.event(event))

    async def done(self) -> None:
        """Say that this was all."""
        await self._open()
        await self._exchange.send({"type": "http.response.body", "body": self._exchange.dialect.end})

    async def _open(self) -> None:
        async with self._opening:
            if self._exchange.events:
                return
            await self._exchange.send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            self._exchange.events = True
            if self._hello:
                await self._exchange.send({"type": "http.response.body", "body": self._hello, "more_body": True})

    async def _write(self, data: bytes) -> None:
        if not self._exchange.events:
            await self._open()
        self._last = time.monotonic()
        await self._exchange.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self) -> None:
        while not self._exchange.complete:
            silent = time.monotonic() - self._last
            if silent < self._ping_seconds:
                await asyncio.sleep(self._ping_seconds - silent)
                continue
            try:
                await self._write(self._exchange.dialect.ping)
            except Gone:
                return  # the connection is dropped by now, which ends the work too
