"""Exchange: one HTTP request and its answer, on plain ASGI, with an eye on the client all the time.

A client that leaves, or that reads too slowly, must not keep the engine busy. So while work runs ``receive`` is watched
for the disconnect, and every ``send`` has a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from diastole.serve.dialect import dialect_of
from diastole.serve.errors import ApiError, Gone
from diastole.serve.gate import Gate, shutting_down
from diastole.serve.keys import NOBODY
from diastole.serve.notes import Notes
from diastole.serve.quota import FREE

T = TypeVar("T")
log = logging.getLogger("diastole.serve")

BODY_SECONDS = 60.0  # to send a whole body
SWALLOW_SECONDS = 2.0  # of reading on after an early answer
ABORT = "diastole.abort"  # scope extension: drops the connection with all that is unsent
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class Exchange:
    """One request and its answer.

    Args:
        send_seconds: how long the client may take to make room for the next piece.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, gate: Gate, send_seconds: float) -> None:
        self.id = secrets.token_hex(12)  # ours: what clients send as an id is only echoed
        self.scope, self.gate = scope, gate
        self.key = NOBODY  # these two are set by whoever checks keys
        self.account = FREE
        self.dialect = dialect_of(scope["path"])
        self.ending: Callable[[], None] = lambda: None  # called before the last piece of the answer is sent
        self.status = 0  # of HTTP; 0 until the answer has begun
        self.events = False  # the answer is an event stream
        self.last_words = self.dialect.error_event  # in an event stream that an error ends
        self.complete = False
        self.route: str | None = None  # the route that took it
        self.notes = Notes()
        self._receive, self._send, self._send_seconds = receive, send, send_seconds
        self.headers: dict[str, str] = {}  # of the request; of repeated ones the first
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        given = self.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else self.id
        # Whether the client may still be sending its body.
        self._sending = self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers

    async def receive(self) -> Message:
        """Receive an ASGI message."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._sending = False
        return message

    async def send(self, message: Message) -> None:
        """Send an ASGI message.

        Raises:
            Gone: the client did not make room for it in time.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            message["headers"] += [(k.encode(), v.encode()) for k, v in self.account.headers().items()]
        elif not message.get("more_body", False):
            self.complete = True
            self.ending()
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._send(message)
        except TimeoutError:
            self.drop()
            raise Gone(f"the client took no data for {self._send_seconds:g} s") from None

    def drop(self) -> None:
        """End the connection without waiting for what is unsent."""
        abort = self.scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort["now"]()

    async def reply(
        self,
        status: int,
        body: bytes,
        type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The whole answer. If the body was not read to its end, it is read on for a moment before the answer ends."""
        fields = {"content-type": type, "content-length": str(len(body)), **(headers or {})}
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in fields.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        if self._sending:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await self._swallow()
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def reply_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, a struct or plain values."""
        await self.reply(status, msgspec.json.encode(value), headers=headers)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error; in an event stream as its last event."""
        if self.complete:
            return
        if self.status == 0:
            body = self.dialect.error(error)
            await self.reply(error.status, body, headers=error.headers)
        elif self.events:
            last = self.last_words(error) + self.dialect.end
            await self.send({"type": "http.response.body", "body": last})
        else:
            self.drop()  # half an answer: nothing true can follow it

    async def body(self, limit: int) -> bytes:
        """The request's body, counted as it comes.

        Raises:
            ApiError: 413 it is larger than ``limit`` bytes; 408 it does not come.
            Gone: the client left before its end.
        """
        too_large = ApiError(413, f"The body may have at most {limit} bytes.", code="request_too_large", close=True)
        announced = self.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise too_large

        async def read() -> bytes:
            got = bytearray()
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise Gone("the client left before the end of its request")
                got += message.get("body", b"")
                if len(got) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(got)

        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._race(read(), watch=False)
        except TimeoutError:
            message = f"The body did not come within {BODY_SECONDS:g} s."
            raise ApiError(408, message, code="request_timeout", close=True) from None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, unless the client leaves or the server must stop first; then the work is cancelled.

        Call it once the body is read.

        Raises:
            Gone: the client left.
            ApiError: 503 shutting_down.
        """
        return await self._race(work, watch=True)

    async def _race(self, work: Coroutine[Any, Any, T], watch: bool) -> T:
        task = asyncio.create_task(work)
        abort = asyncio.create_task(self.gate.aborted.wait())
        gone = asyncio.create_task(self._left()) if watch else None
        others: list[asyncio.Task[Any]] = [abort] if gone is None else [abort, gone]
        try:
            await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone is not None and gone.done():
                raise Gone("the client left")
            raise shutting_down()
        finally:
            interrupted = not task.done()
            for unfinished in [task, *others]:
                unfinished.cancel()
            # Here the work closes its iterators, which frees what the engine holds for it.
            end, *_ = await asyncio.gather(task, *others, return_exceptions=True)
            if interrupted and isinstance(end, Exception) and not isinstance(end, Gone):
                log.warning("request %s was interrupted and then failed: %r", self.id, end)

    async def _left(self) -> None:
        """Return when the client leaves. The end of our own answer is told like a disconnect and is none."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.complete:
            await asyncio.Event().wait()

    async def _swallow(self) -> None:
        """Read on: a client that is still sending would see a reset instead of the answer if we closed at once."""
        try:
            async with asyncio.timeout(SWALLOW_SECONDS):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
