"""``WS /v1/streams/{model}``: live input in, what is found in it out.

The first message is a hello in JSON, and answered by ``ready``. Then pieces of input come as binary messages, and
events go as JSON. ``{"type": "end"}`` ends the input; the last event is ``done``. When the connection is lost before,
the stream waits a while for a hello with its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from diastole.serve.hello import Converter, Hello
from diastole.serve.keys import NOBODY, Key
from diastole.serve.livesession import LiveSession
from diastole.serve.sockets import GONE, POLICY, Door
from diastole.types import UserError

HELLO_SECONDS = 15.0  # until it has come
LARGEST_TEXT = 65_536  # bytes of a message in JSON


class Streams:
    """The endpoint, and the sessions that outlive their connections."""

    def __init__(self, door: Door) -> None:
        self.door, self.face = door, door.face
        self._waiting: dict[str, tuple[LiveSession, Key, asyncio.Task[None]]] = {}  # by token, connection lost

    async def __call__(self, socket: WebSocket) -> None:
        await self.door.pass_on(socket, self._serve, _refuse)

    async def _serve(self, socket: WebSocket) -> None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await _hello(socket)
        except TimeoutError:
            raise UserError(f"no hello came within {HELLO_SECONDS:g} s", param="type", code="idle") from None
        key = self.door.key(socket, hello.api_key)
        address = socket.client.host if socket.client else ""
        with self.face.gate.enter(), self.face.quotas.account(key, address).enter():
            session = self._resumed(hello, key) if hello.resume else self._opened(socket, hello)
            try:
                await session.opened()
                await socket.send_text(self._ready(session, hello))
                ended = await self._talk(socket, session, hello.after if hello.resume else 0)
            except BaseException:
                await session.close()
                raise
            if ended:
                await session.close()
            else:
                self._wait(session, key)

    def _opened(self, socket: WebSocket, hello: Hello) -> LiveSession:
        self.face.check_ready()
        self.face.memory.check()
        service = self.face.live(str(socket.path_params["model"]))
        params = hello.params()
        return LiveSession(service, params, Converter(hello, service.card), hello.chunks)

    def _ready(self, session: LiveSession, hello: Hello) -> str:
        card = session.service.card
        told = {
            "type": "resumed" if hello.resume else "ready",
            "stream": session.id,
            "resume": session.token,
            "model": card.name,
            "rate": card.rate,
            "channels": card.channels,
            "unit_ms": round(1000 * card.hop / card.rate, 3),
            "kinds": card.kinds,
            "options": {**card.options, **hello.options},
            "received": session.received,
        }
        return msgspec.json.encode(told).decode()

    # ---- connections that are lost

    def _wait(self, session: LiveSession, key: Key) -> None:
        """Keep a session for a client that may come back."""
        task = asyncio.create_task(self._expire(session))
        self._waiting[session.token] = session, key, task

    async def _expire(self, session: LiveSession) -> None:
        await asyncio.sleep(self.face.config.stream_resume_seconds)
        self._waiting.pop(session.token, None)
        await session.close()

    def _resumed(self, hello: Hello, key: Key) -> LiveSession:
        session, owner, task = self._waiting.get(hello.resume, (None, NOBODY, None))
        if session is None or task is None or owner != key:
            message = "no stream waits for this token: its time is over, or another connection has it"
            raise UserError(message, param="resume", code="stream_not_found")
        task.cancel()
        del self._waiting[hello.resume]
        return session

    async def close(self) -> None:
        """End what waits."""
        for session, _, task in list(self._waiting.values()):
            task.cancel()
            await session.close()
        self._waiting.clear()

    # ---- a conversation

    async def _talk(self, socket: WebSocket, session: LiveSession, after: int) -> bool:
        """Until the last event was sent, or the connection is lost; whether the stream is over."""
        tasks = [
            asyncio.create_task(self._listen(socket, session)),
            asyncio.create_task(self._tell(socket, session, after)),
            asyncio.create_task(self.face.gate.aborted.wait()),
        ]
        listening, telling, aborted = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not telling.done() and listening.exception() is None and listening.result():
                await asyncio.wait([telling, aborted], return_when=asyncio.FIRST_COMPLETED)  # all input has come
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if aborted.done() and not aborted.cancelled():
            with contextlib.suppress(Exception):
                await socket.close(GONE, "the server is shutting down")
            return True
        for task in (telling, listening):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, WebSocketDisconnect | ConnectionError):
                    return session.over
                raise error
        if session.over:
            with contextlib.suppress(Exception):
                await socket.close()
        return session.over

    async def _listen(self, socket: WebSocket, session: LiveSession) -> bool:
        """Take input until it ends (true) or the connection does (false).

        Raises:
            UserError: nothing has come for too long, or what came is no message of ours.
        """
        idle = self.face.config.stream_idle_seconds
        while True:
            await session.room()
            try:
                async with asyncio.timeout(idle or None):
                    message = await socket.receive()
            except TimeoutError:
                raise UserError(f"nothing has come for {idle:g} s", param="feed", code="idle") from None
            if message["type"] == "websocket.disconnect":
                return False
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                session.feed(data)
            elif text is not None:
                kind = _object(text).get("type")
                if kind == "end":
                    session.end()
                    return True
                raise UserError(f"a message of type {kind!r:.40} is none of {{'end'}}", param="type")

    async def _tell(self, socket: WebSocket, session: LiveSession, after: int) -> None:
        async for event in session.follow(after):
            async with asyncio.timeout(self.face.config.send_timeout_seconds):
                await socket.send_text(event.decode())


async def _hello(socket: WebSocket) -> Hello:
    """Raises:
    UserError: the first message is none.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    if text is None or len(text) > LARGEST_TEXT:
        raise UserError('the first message must be a hello in JSON: {"type": "hello", ...}', param="type")
    try:
        return msgspec.json.decode(text, type=Hello)
    except msgspec.ValidationError as e:
        raise UserError(f"the hello is wrong: {e}", param="hello") from None
    except msgspec.DecodeError:
        raise UserError("the hello is no JSON", param="hello") from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text[:LARGEST_TEXT], type=dict[str, Any])
    except msgspec.DecodeError:
        raise UserError("a text message must be an object in JSON", param="type") from None
    return found


async def _refuse(socket: WebSocket, error: UserError) -> None:
    code = error.code or "invalid_request"
    told = {"type": "error", "code": code, "message": error.message, "param": error.param, "fatal": True}
    with contextlib.suppress(Exception):
        await socket.send_text(msgspec.json.encode({**told, "emitted": time.time()}).decode())
        await socket.close(POLICY, code)
