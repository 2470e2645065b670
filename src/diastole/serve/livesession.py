"""LiveSession: one live stream of a client, which outlives the connection that it came by for a while.

What is found is kept as numbered events, so that a client whose connection was lost goes on after the last that came.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from diastole.frontend import wire
from diastole.frontend.types import EngineLost, RequestEnded
from diastole.live import LiveParams
from diastole.serve.hello import Converter
from diastole.serve.pulse import Pulse
from diastole.types import Array, UserError

if TYPE_CHECKING:
    from diastole.serve.interface import LiveService

KEPT = 2_000  # events
AHEAD = 10.0  # seconds of input that may wait for answers before no more is read
LATENCIES = 10_000  # latest, of which the summary tells


class LiveSession:
    """A stream in the engine, from its opening to its last event.

    Args:
        chunks: tell of each chunk.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        service: LiveService,
        params: LiveParams,
        converter: Converter,
        chunks: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.id, self.token = f"live-{secrets.token_hex(8)}", secrets.token_urlsafe(24)
        self.service, self.converter, self.chunks = service, converter, chunks
        self.over = False  # no event will follow
        self.touched = time.monotonic()  # when something came
        self._wall = wall
        self._events: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._seq = 0
        self._news = asyncio.Event()
        self._fed = self._answered = 0.0  # seconds of the stream
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._pulse = Pulse(service.card.rate / converter.ratio)
        self._found = self._late = self._clipped = 0  # chunks, those that were late, samples told of
        self._ended = False
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(params))

    async def opened(self) -> None:
        """Wait until the engine has it.

        Raises:
            UserError: the engine refuses it.
            EngineLost: there is none.
        """
        await asyncio.shield(self._open)

    # ---- input

    @property
    def received(self) -> int:
        """Samples, at the client's rate."""
        return self.converter.taken

    def feed(self, data: bytes) -> None:
        """A piece as the client sends it. One that is refused is told of, and lost.

        Raises:
            UserError: the input has ended.
        """
        if self._ended:
            raise UserError("this stream's input has ended", param="feed", code="stream_state")
        self.touched = time.monotonic()
        try:
            x, first = self.converter.samples(data)
        except UserError as e:
            self.tell_error(e)
            return
        self._pulse.beat(self.touched, self.converter.reached)
        self._send(x, first, last=False)
        if self.converter.clipped > self._clipped:
            self._tell("warning", code="clipped", samples=self.converter.clipped)
            self._clipped = self.converter.clipped

    def end(self) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._ended = True
            self._send(self.converter.rest(), None, last=True)

    def _send(self, x: Array, first: int | None, last: bool) -> None:
        rate = self.service.card.rate
        more = self._fed + len(x) / rate
        # Of a numbered piece only what lies ahead counts: answers tell how far the stream is, not how much came.
        self._fed = more if first is None else max(self._fed, min(more, (first + len(x)) / rate))
        self.service.feed(self.id, x.tobytes(), first, last)

    async def room(self) -> None:
        """Wait until there is room for more input."""
        while self._fed - self._answered > AHEAD and not self.over:
            self._news.clear()
            await self._news.wait()

    # ---- output

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Events after this number, as they come, until the last.

        Raises:
            UserError: some of them are not kept any more.
        """
        while True:
            self._news.clear()
            fresh = [event for event in self._events if event[0] > after]
            if fresh and fresh[0][0] > after + 1:
                message = f"events before {fresh[0][0]} are not kept any more: read faster, or resume sooner"
                raise UserError(message, param="after", code="events_lost")
            for seq, event in fresh:
                yield event
                after = seq
            if not fresh:
                if self.over:
                    return
                await self._news.wait()

    async def _run(self, params: LiveParams) -> None:
        try:
            async for found in self.service.readings(self.id, params):
                if isinstance(found, wire.Opened):
                    self._open.set_result(None)
                elif isinstance(found, wire.Unfed):
                    self._fed = self._answered  # nobody will answer it
                    self.tell_error(UserError(found.message, param=found.param, code=found.code))
                else:
                    self._hear(found)
        except (UserError, EngineLost, RequestEnded) as e:
            if not self._open.done():
                self._open.set_exception(e)
            elif isinstance(e, UserError):
                self.tell_error(e, fatal=True)
            else:
                self._tell("error", code="engine_lost", message=f"the stream has ended: {e}", fatal=True)
        finally:
            self._open.cancel()
            self.over = True
            self._news.set()

    def _hear(self, beat: wire.Beat) -> None:
        self._answered = max(self._answered, beat.end)
        self._fed = max(self._fed, self._answered)  # behind a gap that was skipped
        self._found += beat.chunks
        self._late += beat.missed
        self._latencies.append(beat.latency)
        told = {"latency_ms": round(1000 * beat.latency, 3), "deadline_met": beat.missed == 0}
        for kind, start, end, values in beat.readings:
            self._tell(kind, start=round(start, 6), end=round(end, 6), **told, **values)
        if self.chunks:
            self._tell(
                "chunk",
                start=round(beat.start, 6),
                end=round(beat.end, 6),
                chunks=beat.chunks,
                late_chunks=beat.missed,
                **told,
            )
        if beat.final:
            ordered = sorted(self._latencies)
            self._tell(
                "done",
                seconds=round(beat.end, 6),
                chunks=self._found,
                late_chunks=self._late,
                latency_ms={
                    f"p{q}": round(1000 * ordered[int(q / 100 * (len(ordered) - 1))], 3) for q in (50, 99, 100)
                },
                lost_samples=beat.lost,
                late_samples=beat.late,
                overrun_samples=beat.overrun,
                clipped_samples=self.converter.clipped,
                **self._pulse.told(),
            )
        self._news.set()

    def tell_error(self, error: UserError, fatal: bool = False) -> None:
        """Say what was wrong."""
        self._tell("error", code=error.code or "invalid_request", message=error.message, param=error.param, fatal=fatal)

    def _tell(self, kind: str, **values: Any) -> None:
        self._seq += 1
        event = {"type": kind, "seq": self._seq, "emitted": round(self._wall(), 6), **values}
        self._events.append((self._seq, msgspec.json.encode(event)))
        self._news.set()

    async def close(self) -> None:
        """End it now, whatever is left."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
