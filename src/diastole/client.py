"""A client of a server's live streams, for programs: ``async for event in stream(...)``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from diastole.types import Array, UserError

RETRIES = 5  # attempts to resume a stream
PAUSE = 0.5  # seconds before the first of them, doubled each time
AHEAD = 8  # pieces taken from the source before they are sent
KEPT = 500  # pieces that can be sent again


async def stream(
    url: str,
    model: str,
    pieces: AsyncIterable[Array] | AsyncIterable[tuple[int, Array]],
    *,
    rate: float | None = None,
    channels: Sequence[str] | int | None = None,
    options: Mapping[str, Any] | None = None,
    api_key: str = "",
    chunks: bool = False,
    resample: bool = False,
    lost: Literal["", "wait", "conceal", "drop"] = "",
) -> AsyncIterator[dict[str, Any]]:
    """Send samples to a model as they come, and get what it finds: events as the server sends them, ``ready`` first and
    ``done`` last. A connection that is lost is made again, and the stream goes on where it was.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        pieces: (n, C) numbers each, or (n,) for one channel.
        rate: samples per second, if another than the model's; then resample must be wished.
        channels: names in the order in which they are sent, or how many.
        options: of the model.
        chunks: also an event for each chunk that was answered.
        lost: what becomes of samples that are missing between pieces, which then are (number of the first sample,
            samples): "wait" for them for a while, "conceal" them by zeros, or "drop" them, so that the model begins
            anew. "": pieces follow each other.

    Raises:
        UserError: the server refuses the stream, or cannot be reached.
        Exception: what ``pieces`` raises, once everything before is answered.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    address = url.replace("http", "ws", 1).rstrip("/") + f"/v1/streams/{model}"
    hello = {
        "type": "hello",
        "rate": rate,
        "channels": channels if channels is None or isinstance(channels, int) else list(channels),
        "dtype": "float32",
        "options": dict(options or {}),
        "chunks": chunks,
        "resample": resample,
        **({"indexed": True, "lost": lost} if lost else {}),
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    sender = _Sender(pieces)
    last, token, failures = 0, "", 0
    try:
        while True:
            try:
                async with connect(address, additional_headers=headers, max_size=None) as socket:
                    again = {"resume": token, "after": last} if token else {}
                    await socket.send(json.dumps({**hello, **again}))
                    async for text in socket:
                        event = json.loads(text)
                        kind = event["type"]
                        if kind == "error" and event.get("fatal"):
                            raise UserError(event["message"], param=event.get("param"), code=event.get("code"))
                        if kind in {"ready", "resumed"}:
                            token, failures = event["resume"], 0
                            sender.begin(socket, event["received"])
                            if kind == "resumed":
                                continue
                        last = event.get("seq", last)
                        yield event
                        if kind == "done":
                            sender.check()
                            return
            except (ConnectionClosed, OSError) as e:
                failures += 1
                if not token or failures > RETRIES:
                    raise UserError(f"the server at {url} cannot be reached: {e}", param="url") from None
            await asyncio.sleep(PAUSE * 2 ** (failures - 1) if failures else PAUSE)
    finally:
        await sender.stop()


class _Piece(NamedTuple):
    """Samples, and the number of the first one where that is told."""

    x: Array  # (n, C) float32
    first: int | None

    def message(self, skip: int = 0) -> bytes:
        """As it is sent, without the first so many."""
        number = b"" if self.first is None else (self.first + skip).to_bytes(8, "little", signed=True)
        return number + self.x[skip:].tobytes()


class _Sender:
    """Sends pieces over one connection after the other, from where the server has them."""

    def __init__(self, pieces: AsyncIterable[Array] | AsyncIterable[tuple[int, Array]]) -> None:
        self._queue: asyncio.Queue[_Piece | None] = asyncio.Queue(AHEAD)
        self._pumping = asyncio.create_task(self._pump(pieces))
        self._kept: deque[tuple[int, _Piece]] = deque(maxlen=KEPT)  # latest ones, each behind so many samples
        self._made = 0
        self._over = False
        self._failure: Exception | None = None
        self._sending: asyncio.Task[None] | None = None

    async def _pump(self, pieces: AsyncIterable[Array] | AsyncIterable[tuple[int, Array]]) -> None:
        """Apart from the sending, which is cancelled when its connection is lost."""
        try:
            async for piece in pieces:
                first, x = piece if isinstance(piece, tuple) else (None, piece)
                await self._queue.put(_Piece(np.ascontiguousarray(x, "<f4").reshape(len(x), -1), first))
        except Exception as e:  # whatever the source does: what it gave before is answered
            self._failure = e
        await self._queue.put(None)

    def check(self) -> None:
        """Raises:
        Exception: what the pieces ended with.
        """
        if self._failure is not None:
            raise self._failure

    def begin(self, socket: Any, received: int) -> None:
        """Go on with a connection whose server has so many samples."""
        if self._sending is not None:
            self._sending.cancel()
        self._sending = asyncio.create_task(self._send(socket, received))

    async def _send(self, socket: Any, received: int) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed, OSError):  # who reads it is told
            for behind, piece in list(self._kept):
                if behind + len(piece.x) > received:
                    await socket.send(piece.message(max(received - behind, 0)))
            while not self._over:
                following = await self._queue.get()
                if following is None:
                    self._over = True
                else:
                    self._kept.append((self._made, following))
                    self._made += len(following.x)
                    await socket.send(following.message())
            await socket.send('{"type": "end"}')

    async def stop(self) -> None:
        """Send no more."""
        tasks = [t for t in (self._pumping, self._sending) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
