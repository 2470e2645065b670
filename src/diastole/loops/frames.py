"""Live frames: input arrives at its own pace, and every chunk is owed an answer by a deadline.

A frame counts from the request's arrival: frame i exists at ``arrival + (i + 1) * period``, and its output is due
``slo.gap`` later. The loop runs whole chunks, and what is left when the input ends. Because an idle stream already owns
its next deadline, ``forecast`` tells it, and the engine keeps that time free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diastole.state.cells import CellPool
from diastole.types import Array, Ask, Batch, Event, Grant, Outcome, Request, Stream, UserError

_NOTHING = np.empty(0, np.int32)
_NO_TABLE = np.empty((0, 0), np.int32)


@dataclass(frozen=True, slots=True)
class LiveParams:
    """What a live request declares. ``frames`` ends the stream by count; 0: it ends when the input says so."""

    period: float  # seconds per frame
    frames: int = 0


class Frames(NamedTuple):
    """What an event of this loop carries. data (n, F) float32, the output for input frames first..first+n-1."""

    first: int
    data: Array


@dataclass(eq=False, slots=True)
class Live:
    """The loop's private record of a stream: input that has come but is not absorbed yet."""

    waiting: Array  # (known - done, F) float32
    ended: bool = False


class LiveFrames:
    """The loop of causal models over live frames, with state in cells.

    Args:
        pool: one cell per stream.
        features: F, numbers per frame.
        chunk: frames that the model runs at once.
        longest: most frames of one stream held unprocessed.
    """

    unit = "frame"
    repeatable = False  # cells are changed in place

    def __init__(self, pool: CellPool, features: int, chunk: int, longest: int = 65_536) -> None:
        self.pool, self.features, self.chunk, self.longest = pool, features, chunk, longest

    # ---- a stream's life

    def check(self, request: Request) -> None:
        params = request.params
        if not isinstance(params, LiveParams):
            raise UserError("params of a live request must be LiveParams", param="params")
        if not params.period > 0 or params.frames < 0:
            raise UserError("period must be positive seconds and frames not negative", param="period")

    def preparation(self, request: Request) -> None:
        return None

    def open(self, request: Request) -> Stream:
        return Stream(request, 0, known=0, own=Live(np.empty((0, self.features), np.float32)))

    def admit(self, stream: Stream) -> bool:
        lease = self.pool.lease()
        if lease is None:
            return False
        stream.leases["cell"] = lease
        return True

    def resume(self, request: Request, said: Sequence[int]) -> Stream:
        raise UserError("a live stream cannot go on elsewhere", param="said")

    def most(self, stream: Stream) -> int:
        return stream.known  # its state does not grow

    def feed(self, stream: Stream, chunk: Array, last: bool) -> None:
        """chunk (n, F) float32."""
        live: Live = stream.own
        if live.ended:
            raise UserError("this stream's input has ended", param="feed", code="stream_state")
        if chunk.ndim != 2 or chunk.shape[1] != self.features or not np.isfinite(chunk).all():
            raise UserError(
                f"a chunk must be (frames, {self.features}) finite numbers, not {chunk.shape}",
                param="feed",
                code="invalid_chunk",
            )
        if len(live.waiting) + len(chunk) > self.longest:
            raise UserError(
                f"more than {self.longest} frames wait to be processed: send slower", param="feed", code="backpressure"
            )
        live.waiting = np.concatenate([live.waiting, chunk.astype(np.float32, copy=False)])
        stream.known += len(chunk)
        end = stream.req.params.frames
        live.ended = last or (0 < end <= stream.known)

    def rewind(self, stream: Stream) -> None:
        raise RuntimeError("a live stream's past input is gone: it cannot be computed again")

    def close(self, stream: Stream) -> None:
        for lease in stream.leases.values():
            lease.close()
        stream.leases.clear()

    # ---- deadlines

    def due(self, stream: Stream, frames: int) -> float:
        """When the output of the first ``frames`` frames is owed, in seconds."""
        return stream.req.arrival + frames * stream.req.params.period + stream.req.slo.gap

    def ask(self, stream: Stream) -> Ask | None:
        live: Live = stream.own
        ready = stream.left if live.ended else stream.left // self.chunk * self.chunk
        if ready == 0:
            return None
        first = min(self.chunk, ready)
        return Ask(stream, first, ready, self.due(stream, stream.done + first), emits=True)

    def forecast(self, stream: Stream) -> tuple[float, Grant] | None:
        if stream.own.ended or stream.left >= self.chunk:
            return None
        return self.due(stream, stream.done + self.chunk), Grant(stream, self.chunk)

    # ---- a step

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        spans = [(s, min(n, s.left)) for s, n in grants]
        starts = np.zeros(len(spans) + 1, np.int32)
        np.cumsum([n for _, n in spans], out=starts[1:])
        frames = [s.own.waiting[:n] for s, n in spans]
        pos = [np.arange(s.done, s.done + n, dtype=np.int32) for s, n in spans]
        return Batch(
            grants=tuple(Grant(s, n) for s, n in spans),
            leases=tuple(s.leases for s, _ in spans),
            inputs=np.concatenate(frames) if frames else np.empty((0, self.features), np.float32),
            pos=np.concatenate(pos) if pos else _NOTHING,
            starts=starts,
            rows=_NOTHING,
            tables=_NO_TABLE,
            lo=_NOTHING,
            hi=_NOTHING,
            want=np.arange(starts[-1], dtype=np.int32),
        )

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """output (T, F'): one row per granted frame."""
        events = []
        for (stream, n), lo in zip(batch.grants, batch.starts, strict=False):
            live: Live = stream.own
            live.waiting = live.waiting[n:]
            first, stream.done = stream.done, stream.done + n
            stream.leases["cell"].units = stream.done
            stream.emitted_at = now
            stream.finished = live.ended and stream.left == 0
            if stream.finished:
                self.close(stream)
            events.append(Event(stream.req.id, 0, Frames(first, output[lo : lo + n].copy()), stream.finished, now))
        return Outcome(events, [])
