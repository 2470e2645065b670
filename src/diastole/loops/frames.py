"""Live frames: causal models whose state is in cells take input as it comes and answer chunk by chunk.

The loop runs whole chunks, and what is left when the input ends. Because an idle stream already owns its next deadline,
``forecast`` tells it, and the engine keeps that time free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from diastole.live import Chunk, Counts, LiveModel, LiveParams, Reading
from diastole.loops.intake import Intake
from diastole.state.cells import CellPool
from diastole.types import Array, Ask, Batch, CellSpec, Event, Grant, Outcome, Request, Stream, UserError

LATE = 1e-9  # seconds that count as none
LONGEST = 600.0  # seconds of one stream's input held unprocessed
LONGEST_GAP = 366 * 86_400.0  # seconds behind which a stream may begin anew
_NOTHING = np.empty(0, np.int32)
_NO_TABLE = np.empty((0, 0), np.int32)


class Read(NamedTuple):
    """What an event of this loop carries: the readings of a chunk, or of several that ran together."""

    start: float  # seconds of the stream
    end: float
    latency: float  # seconds from when the first chunk's last sample was there
    chunks: int
    missed: int  # of them, those whose time was over
    readings: Sequence[Reading]
    counts: Counts


@dataclass(eq=False, slots=True)
class Live:
    """The loop's private record of a stream."""

    intake: Intake
    options: Any
    chunk: int  # units
    gap: float  # seconds in which the answer to a chunk is owed
    record: Any  # what the model's reading remembers
    said: list[Reading] = field(default_factory=list)  # before those of the next chunk


class Taken(NamedTuple):
    """A chunk of a stream that runs."""

    grant: Grant
    start: int  # its first sample
    data: Array  # (n, C)
    came: float  # when its first chunk was whole
    due: Sequence[float]  # of each of its chunks


class Rows(NamedTuple):
    """What a model is shown of it."""

    inputs: Array  # (R, hop or window, C) float32
    units: Array  # (R,) int32
    lo: Array  # (R,) int32: of each row the samples lo <= j < hi are the stream's, the others zero
    hi: Array  # (R,) int32


class LiveFrames:
    """The loop of causal models over live frames, with state in cells.

    Args:
        pool: one cell per stream, of ``specs(model)``.
        longest: seconds of one stream's input held unprocessed.
    """

    unit = "frame"
    repeatable = False  # cells are changed in place

    def __init__(self, model: LiveModel, pool: CellPool, longest: float = LONGEST) -> None:
        self.model, self.pool, self.signal = model, pool, model.signal
        self.most_samples = max(int(longest * self.signal.rate), self.signal.hop)

    @staticmethod
    def specs(model: LiveModel) -> dict[str, CellSpec]:
        """What a cell of a stream holds."""
        return dict(model.state_specs())

    # ---- a stream's life

    def check(self, request: Request) -> None:
        params = request.params
        if not isinstance(params, LiveParams):
            raise UserError("this model answers live input: open a stream", param="model", code="live_model")
        params.check()
        self.model.options(params.options)
        if not self.pool.free:  # a stream that waits would be late from its beginning
            message = f"{self.pool.cells} live streams are open, as many as max_streams allows: try again later"
            raise UserError(message, param="max_streams", code="overloaded")

    def preparation(self, request: Request) -> None:
        return None

    def open(self, request: Request) -> Stream:
        options = self.model.options(request.params.options)
        intake = Intake(self.signal, request.params, request.arrival)
        chunk = self.model.chunk(options)
        gap = request.params.deadline or chunk * self.signal.period
        live = Live(intake, options, chunk, gap, self.model.begin(options))
        return Stream(request, 0, known=0, own=live)

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

    def feed(self, stream: Stream, chunk: Chunk, now: float) -> None:
        live: Live = stream.own
        intake, channels = live.intake, len(self.signal.channels)
        data, first = chunk.data, chunk.first
        if data.ndim == 1 and len(data) % channels == 0:
            data = data.reshape(-1, channels)
        if intake.ended:
            raise UserError("this stream's input has ended", param="feed", code="stream_state")
        if data.ndim != 2 or data.shape[1] != channels or not np.isfinite(data).all():
            message = f"a chunk must be (samples, {channels}) finite numbers, not {data.shape}"
            raise UserError(message, param="feed", code="invalid_chunk")
        ahead = LONGEST_GAP * self.signal.rate if intake.params.lost == "drop" else self.most_samples
        if first is not None and not 0 <= first <= intake.came + ahead:
            message = f"a chunk that begins at sample {first} is too far from {intake.came}, where the stream is"
            raise UserError(message, param="first", code="invalid_chunk")
        if len(intake) + len(data) > self.most_samples and intake.params.overrun == "refuse":
            seconds = self.most_samples / self.signal.rate
            message = f"more than {seconds:g} seconds wait to be processed: send slower"
            raise UserError(message, param="feed", code="backpressure")
        stream.known = intake.take(chunk._replace(data=data), now, stream.known)
        stream.known = intake.shed(self.most_samples, stream.done, stream.known)

    def rewind(self, stream: Stream) -> None:
        raise RuntimeError("a live stream's past input is gone: it cannot be computed again")

    def close(self, stream: Stream) -> None:
        for lease in stream.leases.values():
            lease.close()
        stream.leases.clear()

    # ---- deadlines

    def ask(self, stream: Stream) -> Ask | None:
        live: Live = stream.own
        intake, left = live.intake, stream.left
        ready = intake.until_break(stream.done, left)
        if ready == left and not intake.ended:
            ready = left // live.chunk * live.chunk
        if ready == 0:
            return None
        first = min(live.chunk, ready)
        return Ask(stream, first, ready, intake.ready(first) + live.gap, emits=True)

    def forecast(self, stream: Stream) -> tuple[float, Grant] | None:
        live: Live = stream.own
        if live.intake.ended or stream.left >= live.chunk:
            return None
        return live.intake.expected(live.chunk) + live.gap, Grant(stream, live.chunk)

    # ---- a step

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        taken = []
        for stream, wanted in grants:
            live: Live = stream.own
            n = min(wanted, stream.left)
            if n < stream.left:  # whole chunks, unless fewer units are all that will come before a gap
                n = n // live.chunk * live.chunk or n
            self._begin(stream)
            ends = [*range(live.chunk, n, live.chunk), n]
            due = [live.intake.ready(end) + live.gap for end in ends]
            start, came = live.intake.at(stream.done), live.intake.whole(ends[0])
            taken.append(Taken(Grant(stream, n), start, live.intake.leave(n), came, due))
        rows = [self.rows(t) for t in taken]
        starts = np.zeros(len(taken) + 1, np.int32)
        np.cumsum([len(r.inputs) for r in rows], out=starts[1:])
        total = int(starts[-1])
        return Batch(
            grants=tuple(t.grant for t in taken),
            leases=tuple(t.grant.stream.leases for t in taken),
            inputs=np.concatenate([r.inputs for r in rows]) if total else np.empty((0, *self.shape), np.float32),
            pos=np.concatenate([r.units for r in rows]) if total else _NOTHING,
            starts=starts,
            rows=_NOTHING,
            tables=_NO_TABLE,
            lo=np.concatenate([r.lo for r in rows]) if total else _NOTHING,
            hi=np.concatenate([r.hi for r in rows]) if total else _NOTHING,
            want=np.arange(total, dtype=np.int32),
            extra={"taken": taken},
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Of a row of input."""
        return self.signal.hop, len(self.signal.channels)

    def rows(self, taken: Taken) -> Rows:
        """What the model is shown of a chunk: its units, the last filled up with zeros if it is short."""
        hop, channels = self.shape
        n = -(-len(taken.data) // hop)
        inputs = np.zeros((n * hop, channels), np.float32)
        inputs[: len(taken.data)] = taken.data
        units = np.arange(taken.grant.stream.done, taken.grant.stream.done + n, dtype=np.int32)
        hi = np.minimum(len(taken.data) - np.arange(n) * hop, hop).astype(np.int32)
        return Rows(inputs.reshape(n, hop, channels), units, np.zeros(n, np.int32), hi)

    def _begin(self, stream: Stream) -> None:
        """Begin anew where something is missing before the next unit."""
        live: Live = stream.own
        missing = live.intake.begins_anew(stream.done)
        if missing == 0:
            return
        end = live.intake.at(stream.done) / self.signal.rate
        live.said.append(Reading("gap", end - missing / self.signal.rate, end, {"samples": missing}))
        self.pool.clear(stream.leases["cell"])
        live.record = self.model.begin(live.options)

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """output: one row per row of the batch."""
        rate, hop = self.signal.rate, self.signal.hop
        events = []
        for taken, lo, hi in zip(batch.extra["taken"], batch.starts, batch.starts[1:], strict=False):
            stream, n = taken.grant
            live: Live = stream.own
            end = taken.start + min(n * hop, len(taken.data))
            ends = np.minimum(taken.start + (batch.pos[lo:hi] + 1 - stream.done) * hop, end)
            stream.done += n
            stream.leases["cell"].units = stream.done
            stream.emitted_at = now
            stream.finished = live.intake.ended and stream.left == 0
            found = self.model.read(live.record, ends, output[lo:hi], stream.finished)
            readings, live.said = [*live.said, *found], []
            if stream.finished:
                self.close(stream)
            missed = sum(now > due + LATE for due in taken.due)
            times = taken.start / rate, end / rate, now - taken.came
            data = Read(*times, len(taken.due), missed, readings, live.intake.counts)
            events.append(Event(stream.req.id, 0, data, stream.finished, now, units=n))
        return Outcome(events, [])
