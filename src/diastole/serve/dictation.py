"""Dictation: speech of one client that becomes items of a conversation, utterance by utterance, as it is spoken."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from diastole.serve.hello import Converter, Hello
from diastole.serve.interface import LiveService
from diastole.serve.livesession import LiveSession
from diastole.serve.realtime_shape import Wishes
from diastole.types import UserError

Tell = Callable[..., Awaitable[None]]  # type of an event, and its fields

SAID = "conversation.item.input_audio_transcription"


class Dictation:
    """What has been said into the buffer, until it is committed or cleared: one live stream.

    Where the model tells where utterances end, each becomes an item; else all of the buffer does.

    Args:
        offset: seconds of speech in the conversation before it.
        before: the last item before it, or "".
        tell: sends an event.
    """

    def __init__(self, service: LiveService, wishes: Wishes, offset: float, before: str, tell: Tell) -> None:
        self.offset, self.last, self._turns, self._tell = offset, before, wishes.turns, tell
        self._rate = wishes.rate
        hello = Hello(rate=wishes.rate, channels=1, dtype="int16", resample=True)
        converter = Converter(hello, service.card)
        hello.options = wishes.asked(service.card.options)
        self._session = LiveSession(service, hello.params(), converter, chunks=False)
        self._item = _Item()
        self._begun = 0.0  # seconds of the buffer before the item
        self._telling = asyncio.create_task(self._follow())

    @property
    def seconds(self) -> float:
        """That have come."""
        return self._session.received / self._rate

    async def opened(self) -> None:
        """Wait until the engine has it.

        Raises:
            UserError: the engine refuses it.
        """
        await self._session.opened()

    async def append(self, data: bytes) -> None:
        """Samples, once there is room for them."""
        await self._session.room()
        self._session.feed(data)

    async def commit(self) -> str:
        """Nothing more will be said into it: the item that it becomes."""
        item = self._item
        if not self._turns or item.heard:
            await self._committed(item)
        self._session.end()
        return self.last

    async def finished(self) -> None:
        """Wait until all of it has been told."""
        await asyncio.gather(self._telling, return_exceptions=True)

    async def close(self) -> None:
        """End it now."""
        self._telling.cancel()
        await asyncio.gather(self._telling, return_exceptions=True)
        await self._session.close()

    # ---- what is found

    async def _follow(self) -> None:
        try:
            async for text in self._session.follow(0):
                await self._hear(msgspec.json.decode(text))
        except UserError as e:  # it was not read fast enough
            await self._failed({"code": e.code, "message": e.message, "param": e.param})

    async def _hear(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind in {"partial", "final"}:
            await self._said(event)
        elif kind == "done" and not self._turns:
            await self._completed(event["seconds"])
        elif kind == "error" and event["fatal"]:
            await self._failed(event)
        elif kind == "error":
            await self._tell("error", error=_error(event))

    async def _said(self, event: dict[str, Any]) -> None:
        item = self._item
        if not item.heard and self._turns:
            at = round(1000 * (self.offset + event["start"]))
            await self._tell("input_audio_buffer.speech_started", audio_start_ms=at, item_id=item.id)
        item.heard = True
        final = event["type"] == "final"
        if delta := item.more(event["text"], final):
            await self._tell(f"{SAID}.delta", item_id=item.id, content_index=0, delta=delta)
        if final and self._turns:
            at = round(1000 * (self.offset + event["end"]))
            await self._tell("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=item.id)
            await self._committed(item)
            await self._completed(event["end"])

    async def _committed(self, item: _Item) -> None:
        if not item.committed:
            item.committed = True
            before, self.last = self.last or None, item.id
            await self._tell("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)

    async def _completed(self, until: float) -> None:
        """The item is over, and another one may begin."""
        item, self._item = self._item, _Item()
        usage = {"type": "duration", "seconds": round(until - self._begun, 3)}
        self._begun = until
        transcript = {"item_id": item.id, "content_index": 0, "transcript": item.text, "usage": usage}
        await self._tell(f"{SAID}.completed", **transcript)

    async def _failed(self, error: dict[str, Any]) -> None:
        await self._committed(self._item)
        await self._tell(f"{SAID}.failed", item_id=self._item.id, content_index=0, error=_error(error))


class _Item:
    """One utterance."""

    def __init__(self) -> None:
        self.id = f"item_{secrets.token_hex(10)}"
        self.heard = self.committed = False
        self._done = ""  # texts that are final
        self.text = ""

    def more(self, text: str, final: bool) -> str:
        """What a partial or final text adds to what was told."""
        whole = " ".join(filter(None, [self._done, text]))
        told, self.text = self.text, whole
        if final:
            self._done = whole
        return whole[len(told) :] if whole.startswith(told) else ""


def _error(found: dict[str, Any]) -> dict[str, Any]:
    fields = {name: found.get(name) for name in ("code", "message", "param")}
    return {"type": "invalid_request_error", **fields}
