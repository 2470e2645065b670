"""``WS /v1/realtime``: speech to text as OpenAI's Realtime API has it, for sessions of type ``transcription``."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from diastole.serve.dictation import Dictation
from diastole.serve.errors import ApiError
from diastole.serve.hello import SOUND
from diastole.serve.interface import LiveService
from diastole.serve.realtime_shape import Wishes
from diastole.serve.sockets import GONE, POLICY, Door
from diastole.types import UserError

PROTOCOL = "realtime"
KEY = "openai-insecure-api-key."  # begins the subprotocol by which browsers show their key
LARGEST = 20 << 20  # characters of an event: 15 MiB of samples in base64
UPDATES = {"session.update": "session", "transcription_session.update": "transcription_session"}


class Realtime:
    """The endpoint."""

    def __init__(self, door: Door) -> None:
        self.door, self.face = door, door.face

    async def __call__(self, socket: WebSocket) -> None:
        await self.door.pass_on(socket, self._serve, _refuse, PROTOCOL)

    async def _serve(self, socket: WebSocket) -> None:
        shown = next((p for p in socket.scope.get("subprotocols", ()) if p.startswith(KEY)), KEY)
        key = self.door.key(socket, shown.removeprefix(KEY))
        address = socket.client.host if socket.client else ""
        with self.face.gate.enter(), self.face.quotas.account(key, address).enter():
            self.face.check_ready()
            conversation = _Conversation(self, socket)
            try:
                await self._until_over(conversation)
            finally:
                await conversation.close()

    async def _until_over(self, conversation: _Conversation) -> None:
        """Until the client leaves, or the server shuts down."""
        talking = asyncio.create_task(conversation.run())
        aborted = asyncio.create_task(self.face.gate.aborted.wait())
        try:
            await asyncio.wait([talking, aborted], return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
            else:
                with contextlib.suppress(Exception):
                    await conversation.socket.close(GONE, "the server is shutting down")
        finally:
            for task in (talking, aborted):
                task.cancel()
            await asyncio.gather(talking, aborted, return_exceptions=True)

    def service(self, name: str) -> LiveService:
        """Of speech, by its name; without one, the only one that there is.

        Raises:
            ApiError: there is none, or several.
        """
        services = {s.name: s for s in self.face.backend.live.values()}  # not by their aliases
        sounds = [s for s in services.values() if s.card.quantity == SOUND]
        if not name and len(sounds) == 1:
            return sounds[0]
        if not name:
            names = ", ".join(s.name for s in sounds) or "none here"
            message = f"session.audio.input.transcription.model is required; there is {names}"
            raise ApiError(400, message, param="model", code="missing_required_parameter")
        service = self.face.live(name)
        if service.card.quantity != SOUND:
            raise ApiError(400, f"{name} takes {service.card.quantity}, not sound.", param="model", code="wrong_model")
        return service


class _Conversation:
    """One connection: what it wishes, what is in its buffer, and what was said before."""

    def __init__(self, endpoint: Realtime, socket: WebSocket) -> None:
        self._endpoint, self.socket = endpoint, socket
        self._id = f"sess_{secrets.token_hex(10)}"
        self._wishes = Wishes(model=socket.query_params.get("model", ""))
        self._open: Dictation | None = None
        self._ending: set[Dictation] = set()  # committed, and not told to their ends
        self._seconds, self._last = 0.0, ""  # of speech before the buffer, and the last item
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Answer the client's events until it leaves.

        Raises:
            UserError: nothing has come for too long, or what came is no event.
        """
        await self._shown("session.created")
        idle = self._endpoint.face.config.stream_idle_seconds
        while True:
            try:
                async with asyncio.timeout(idle or None):
                    message = await self.socket.receive()
            except TimeoutError:
                raise UserError(f"nothing has come for {idle:g} s", param="event", code="idle") from None
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None or len(text) > LARGEST:
                raise UserError("events are texts in JSON, of 15 MiB of sound at most", param="event")
            await self._take(text)

    async def _take(self, text: str) -> None:
        event: dict[str, Any] = {}
        try:
            with contextlib.suppress(msgspec.DecodeError):
                event = msgspec.json.decode(text, type=dict[str, Any])
            await self._do(str(event.get("type", "")), event, text)
        except UserError as e:
            await self._wrong(e.message, e.param, e.code, event)
        except ApiError as e:
            await self._wrong(e.message, e.param, e.code, event)

    async def _do(self, kind: str, event: dict[str, Any], text: str) -> None:
        if kind in UPDATES:
            await self._update(text)
            await self._shown(f"{UPDATES[kind]}.updated")
        elif kind == "input_audio_buffer.append":
            await self._append(event.get("audio"))
        elif kind == "input_audio_buffer.commit":
            await self._commit()
        elif kind == "input_audio_buffer.clear":
            await self._clear()
        else:
            message = f"an event of type {kind!r:.60} is none that a transcription session takes"
            raise UserError(message, param="type", code="unknown_event")

    async def _update(self, text: str) -> None:
        """Speech that comes from now on is taken by other rules; what is in the buffer is committed."""
        wishes = self._wishes.updated(text)
        if wishes.model:
            service = self._endpoint.service(wishes.model)
            unknown = sorted(set(wishes.options) - set(service.card.options))
            if unknown:
                known = ", ".join(service.card.options)
                raise UserError(f"{wishes.model} has no option {unknown[0]!r:.40}: it has {known}", param=unknown[0])
        if wishes != self._wishes and self._open is not None:
            await self._commit()
        self._wishes = wishes

    async def _append(self, audio: Any) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise UserError("audio must be samples in base64", param="audio", code="invalid_value") from None
        if self._open is None:
            service = self._endpoint.service(self._wishes.model)
            self._endpoint.face.memory.check()
            opening = Dictation(service, self._wishes, self._seconds, self._last, self._tell)
            try:
                await opening.opened()
            except BaseException:
                await opening.close()
                raise
            self._open = opening
        await self._open.append(data)

    async def _commit(self) -> None:
        spoken = self._open
        if spoken is None or spoken.seconds == 0:
            message = "the buffer is empty: append sound before it is committed"
            raise UserError(message, param="event", code="input_audio_buffer_commit_empty")
        self._open = None
        self._last = await spoken.commit()
        self._seconds += spoken.seconds
        self._ending.add(spoken)
        task = asyncio.create_task(self._end(spoken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, spoken: Dictation) -> None:
        await spoken.finished()
        await spoken.close()
        self._ending.discard(spoken)

    async def _clear(self) -> None:
        spoken, self._open = self._open, None
        if spoken is not None:
            self._seconds, self._last = self._seconds + spoken.seconds, spoken.last
            await spoken.close()
        await self._tell("input_audio_buffer.cleared")

    async def _shown(self, kind: str) -> None:
        known: dict[str, Any] = {}
        with contextlib.suppress(ApiError, UserError):
            known = dict(self._endpoint.service(self._wishes.model).card.options)
        await self._tell(kind, session=self._wishes.shown(self._id, known))

    async def _wrong(self, message: str, param: str | None, code: str | None, event: dict[str, Any]) -> None:
        error = {"type": "invalid_request_error", "code": code or "invalid_request", "message": message, "param": param}
        await self._tell("error", error={**error, "event_id": event.get("event_id")})

    async def _tell(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(10)}", **fields}
        async with self._sending, asyncio.timeout(self._endpoint.face.config.send_timeout_seconds):
            await self.socket.send_text(msgspec.json.encode(event).decode())

    async def close(self) -> None:
        """End all that is left."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for spoken in [*self._ending, *filter(None, [self._open])]:
            await spoken.close()


async def _refuse(socket: WebSocket, error: UserError) -> None:
    code = error.code or "invalid_request"
    told = {"type": "invalid_request_error", "code": code, "message": error.message, "param": error.param}
    event = {"type": "error", "event_id": f"event_{secrets.token_hex(10)}", "error": told}
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(msgspec.json.encode(event).decode())
        await socket.close(POLICY, code)
