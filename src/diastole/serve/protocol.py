"""uvicorn's HTTP/1.1 protocol with bounds on what a client may send before it has said what it wants."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from diastole.serve.errors import error_json
from diastole.serve.exchange import ABORT

MAX_HEAD_BYTES = 64 * 1024  # request line and headers
MAX_HEADERS = 256
HEAD_SECONDS = 15.0  # for all of them to come
MAX_PIPELINED = 16  # requests that may wait for the answer to an earlier one on their connection


class _HeadTooLarge(Exception):
    """Raised inside a parser callback: the parser passes on only that some callback failed."""


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to too much, drops who is too slow, and says what is wrong in the API's JSON.

    Pipelined requests do not keep it from reading on, for only so is it told that the client has left.
    """

    _head_bytes = 0
    _in_head = True
    _too_large = False
    _head_timer: asyncio.TimerHandle | None = None
    _active: RequestResponseCycle | None = None  # the request that is being answered; ``cycle`` is the newest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Counted before parsing, since the parser collects an unfinished header without end.
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"now": self.transport.abort}}
        if not self._in_head:
            self._head_bytes = 0
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._refuse_head()
        self._head_done()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
        elif self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.transport.abort()  # it would stop our reading until earlier requests are answered

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            what = f"The headers may have at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields."
            self._last_words(431, what, "headers_too_large")
        else:
            self._last_words(400, "This is not a valid HTTP request.", "invalid_http")

    def _refuse_head(self) -> None:
        self._too_large = True
        raise _HeadTooLarge

    def _await_head(self) -> None:
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_late)

    def _head_done(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes:
            self._last_words(408, f"The headers did not come within {HEAD_SECONDS:g} s.", "request_timeout")
        else:
            self.transport.close()  # it never asked anything

    def _last_words(self, status: int, message: str, code: str) -> None:
        """Answer without the application and close."""
        cycle = self._active
        if self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete):
            self.transport.abort()  # an earlier answer is due or being written: nothing may be put before or into it
            return
        body = error_json(status, message, code=code)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
