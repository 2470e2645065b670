"""Denoising: a picture comes out of noise step by step.

A stream knows its steps and has done some of them. Those of several requests, at different steps, share a batch; of one
request with guidance the two branches run side by side and are told apart by their label alone. Where a policy lets the
decoder go on with what the encoder saw earlier, steps may run together, as many as there is time for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from diastole.live import Chunk
from diastole.nn.noise import Schedule
from diastole.params import PictureParams
from diastole.slots_steps import Propagator
from diastole.state.cells import CellPool
from diastole.types import Array, Ask, Batch, Event, Grant, Outcome, Request, Stream, UserError

SLACK = 0.95  # of the time that is left is planned with
_NOTHING, _NO_TABLE = np.empty(0, np.int32), np.empty((0, 0), np.int32)


class Denoiser(Protocol):
    """What the loop has to know of a model."""

    size: tuple[int, int, int]  # H, W, C
    classes: int  # labels that may be asked for; ``classes`` itself says nothing
    schedule: Schedule


class Plan(NamedTuple):
    """What a stream runs in a step of the engine."""

    x: Array  # (H, W, C)
    times: Sequence[int]
    labels: Sequence[int]  # of its branches
    encode: bool  # the encoder runs on x at the first of the times; else what is kept of it counts


class Shown(NamedTuple):
    """What an event of this loop carries."""

    picture: Array | None  # (H, W, C) float32 from -1 to 1; None: this step shows nothing
    done: int  # steps
    steps: int
    encoded: int  # of the steps that are done, those in which the encoder ran
    finish: str | None  # "stop" with the last


class Always:
    """The default ``refresh`` policy: the encoder runs in every step."""

    approximate, together = False, 1

    def keys(self, steps: int) -> Sequence[int]:
        return range(steps)

    def stir(self, x: Array, begun: Array, left: float) -> Array:
        return x


@dataclass(eq=False, slots=True)
class Painting:
    """The loop's private record of a stream."""

    x: Array  # (H, W, C)
    begun: Array  # the noise that it was
    times: list[int]  # of the steps that are left
    key: list[bool]  # whether the encoder runs in each
    labels: tuple[int, ...]
    params: PictureParams
    encoded: int = 0
    shown: int = 0  # previews so far
    began: tuple[float, int] | None = None  # when the first ended, and steps then


class Denoise:
    """The loop of models that take noise off pictures.

    Args:
        pool: one cell for each stream, with what is kept of the encoder, if anything is.
        refresh: in which steps the encoder runs.
    """

    unit = "step"
    repeatable = True  # a forward pass that is run again sees the same pictures

    def __init__(self, model: Denoiser, pool: CellPool, refresh: Propagator | None = None) -> None:
        self.model, self.pool = model, pool
        self.refresh: Propagator = refresh or Always()

    # ---- a stream's life

    def check(self, request: Request) -> None:
        params = request.params
        if not isinstance(params, PictureParams):
            raise UserError("this model makes pictures: ask for them at /v1/images/generations", param="model")
        if params.label is not None and params.label >= self.model.classes:
            message = f"label must be below {self.model.classes}, not {params.label}"
            raise UserError(message, param="label", code="invalid_value")
        self.model.schedule.chosen(params.steps)
        self.refresh.keys(params.steps)

    def preparation(self, request: Request) -> Callable[[], object] | None:
        return None

    def open(self, request: Request) -> Stream:
        params: PictureParams = request.params
        begun = noise(params.seed, self.model.size)
        keys = frozenset(self.refresh.keys(params.steps))
        nothing = self.model.classes
        labels: tuple[int, ...] = (nothing,) if params.label is None else (params.label,)
        if params.label is not None and params.guidance != 1:
            labels = (nothing, params.label)
        times, key = self.model.schedule.chosen(params.steps), [i in keys for i in range(params.steps)]
        return Stream(request, 0, known=params.steps, own=Painting(begun, begun, times, key, labels, params))

    def admit(self, stream: Stream) -> bool:
        lease = self.pool.lease()
        if lease is None:
            return False
        stream.leases["cell"] = lease
        return True

    def resume(self, request: Request, said: Sequence[int]) -> Stream:
        raise UserError("a picture cannot go on elsewhere", param="said")

    def most(self, stream: Stream) -> int:
        return stream.known

    def feed(self, stream: Stream, chunk: Chunk, now: float) -> None:
        raise UserError("a picture is made of one request; open a new one instead", param="feed")

    def rewind(self, stream: Stream) -> None:
        stream.own.key[0] = True  # what was kept of the encoder is lost

    def close(self, stream: Stream) -> None:
        for lease in stream.leases.values():
            lease.close()
        stream.leases.clear()

    # ---- a step

    def ask(self, stream: Stream) -> Ask:
        own: Painting = stream.own
        most = next((i for i, key in enumerate(own.key) if key and i), len(own.key))
        return Ask(stream, 1, min(most, self.refresh.together), stream.due, emits=True)

    def forecast(self, stream: Stream) -> None:
        return None  # it always asks

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        plans = []
        for stream, n in grants:
            own: Painting = stream.own
            x = self._stirred(own, own.times[0]) if own.key[0] else own.x
            plans.append(Plan(x, own.times[:n], own.labels, own.key[0]))
        counts = [n * len(p.labels) for (_, n), p in zip(grants, plans, strict=True)]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return Batch(
            grants=tuple(grants),
            leases=tuple([s.leases for s, _ in grants]),
            inputs=np.empty(starts[-1], np.float32),
            pos=_NOTHING,
            starts=starts,
            rows=_NOTHING,
            tables=_NO_TABLE,
            lo=_NOTHING,
            hi=_NOTHING,
            want=_NOTHING,
            extra={"plans": plans},
        )

    def _stirred(self, own: Painting, t: int) -> Array:
        return self.refresh.stir(own.x, own.begun, t / self.model.schedule.times)

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """output (R, H, W, C): of each stream, step by step, branch by branch."""
        events = []
        for (stream, n), lo, hi in zip(batch.grants, batch.starts, batch.starts[1:], strict=False):
            own: Painting = stream.own
            clean = self._step(own, output[lo:hi].reshape(n, len(own.labels), *self.model.size))
            stream.done += n
            stream.emitted_at = now
            stream.finished = not own.times
            due = own.params.previews and stream.done // own.params.previews > own.shown
            picture = own.x if stream.finished else clean if due else None
            own.shown = stream.done // own.params.previews if own.params.previews else 0
            if stream.finished:
                self.close(stream)
            else:
                self._hurry(stream, now)
            shown = None if picture is None else np.clip(picture, -1, 1)
            data = Shown(shown, stream.done, stream.known, own.encoded, "stop" if stream.finished else None)
            events.append(Event(stream.req.id, stream.index, data, stream.finished, now, units=n))
        return Outcome(events, [])

    def _step(self, own: Painting, found: Array) -> Array:
        """found (n, branches, H, W, C); what the picture is thought to be, as the last of them sees it."""
        schedule, clean = self.model.schedule, own.x
        for branches in found:
            t = own.times.pop(0)
            own.encoded += own.key.pop(0)
            noise = branches[-1]
            if len(branches) == 2:
                noise = branches[0] + np.float32(own.params.guidance) * (branches[1] - branches[0])
            x = self._stirred(own, t)
            clean = schedule.clean(x, noise, t)
            own.x = schedule.earlier(x, noise, t, own.times[0] if own.times else -1)
        return clean

    def _hurry(self, stream: Stream, now: float) -> None:
        """Leave steps out where all would not be done in time, and the request allows it."""
        own: Painting = stream.own
        least, total = own.params.min_steps, stream.req.slo.total
        if own.began is None:
            own.began = now, stream.done
            return
        if least is None or total is None or stream.done == own.began[1]:
            return
        each = (now - own.began[0]) / (stream.done - own.began[1])
        time, left = (stream.req.arrival + total - now) * SLACK, len(own.times)
        fewer = max(int(time / each), least - stream.done, 1)
        if left * each > time and fewer < left:
            kept = np.linspace(0, left - 1, fewer).round().astype(int).tolist()
            own.key = [any(own.key[a:b]) for a, b in zip(kept, [*kept[1:], left], strict=True)]
            own.times = [own.times[i] for i in kept]
            stream.known = stream.done + fewer


def noise(seed: int, size: Sequence[int]) -> Array:
    """What a picture of this size (H, W, C) begins as."""
    draws = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
    return draws.standard_normal(tuple(size), np.float32)
