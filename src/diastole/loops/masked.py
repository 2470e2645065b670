"""Masked decoding: a text whose places are all there from the beginning, and are settled some at a time.

A stream knows the places of its answer and has settled some of them. A step runs the model over all places, or those
that a policy computes again, each of which sees all: what is not computed again is seen as it was computed last. Then
the surest of the masked places are settled. Streams at different steps, of different lengths and rows, share a batch.

What is told of a text is its beginning, as far as it is settled, and beside it each place that was settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from diastole.live import Chunk
from diastole.loops.prompt import check_prompt
from diastole.loops.settling import candidates, check_masked, surest, uniforms
from diastole.loops.texts import Tokens
from diastole.params import SamplingParams, Unmasking
from diastole.sample import Chosen
from diastole.slots_steps import Canvas, Renewer
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Ask, Batch, Event, Grant, Outcome, Request, Stream, UserError

SLACK = 0.95  # of the time that is left is planned with


class Everything:
    """The default ``refresh`` policy: all places, in every step."""

    approximate = False

    def check(self, params: SamplingParams) -> None:
        """Whatever is asked for."""

    def rows(self, canvas: Canvas) -> Array:
        found: Array = np.arange(canvas.length, dtype=np.int32)
        return found


@dataclass(eq=False, slots=True)
class Settling:
    """The loop's private record of a stream."""

    canvas: Canvas
    params: SamplingParams
    unmasking: Unmasking
    size: int  # places of a block
    in_block: int  # steps left for the block
    per_block: int  # of each that comes after it
    stops: frozenset[int]
    order: Array | None  # (L,) rank of each place where the order is drawn before
    places: Array = field(default_factory=lambda: np.empty(0, np.int64))  # that the next step looks at, ascending
    rows: Array = field(default_factory=lambda: np.empty(0, np.int32))  # that it computes
    told: int = 0  # tokens of the answer that were told
    began: float | None = None  # when the first step ended
    computed: int = 0  # rows so far

    @property
    def left(self) -> int:
        """Steps."""
        canvas = self.canvas
        later = (canvas.length - canvas.block[1]) // self.size
        return self.in_block + later * self.per_block

    def next(self) -> int:
        """Places that the next step settles."""
        lo, hi = self.canvas.block
        return -(-int(self.canvas.masked[lo:hi].sum()) // self.in_block)

    def cut(self, most: int) -> None:
        """Plan for so many steps, or as few as there are blocks."""
        canvas = self.canvas
        blocks = 1 + (canvas.length - canvas.block[1]) // self.size
        share = max(most, blocks) / self.left
        if share < 1:
            self.in_block, self.per_block = (max(int(n * share), 1) for n in (self.in_block, self.per_block))


class Masked:
    """The loop of masked language models.

    Args:
        pool: pages of all streams; each holds those of its whole text from its beginning.
        context: most places of a stream, prompt and answer together.
        vocab: ids run from 0 to vocab - 1.
        mask: the id of a place that is not settled.
        shift: 1 where the row before a place tells what stands there, 0 where its own does.
        eos: ids that end a text.
        refresh: which rows are computed again.
    """

    unit = "token"
    repeatable = True  # a forward pass writes the same rows when it is run again

    def __init__(
        self,
        pool: PagePool,
        context: int,
        vocab: int,
        mask: int,
        shift: int,
        eos: frozenset[int],
        refresh: Renewer | None = None,
    ) -> None:
        self.pool, self.context, self.vocab, self.mask, self.shift, self.eos = pool, context, vocab, mask, shift, eos
        self.refresh: Renewer = refresh or Everything()
        self.width = 0  # no vectors are made of prompts

    # ---- a stream's life

    def check(self, request: Request) -> None:
        check_texts(request.inputs, request.params, self.vocab, self.context, self.pool.pages * PAGE)
        if (np.asarray(request.inputs) == self.mask).any():
            raise UserError(f"the prompt holds the mask, token {self.mask}", param="prompt", code="invalid_token_id")
        self.refresh.check(request.params)

    def preparation(self, request: Request) -> Callable[[], object] | None:
        return None

    def open(self, request: Request) -> Stream:
        params: SamplingParams = request.params
        prompt = np.asarray(request.inputs, np.int32)
        length = check_masked(len(prompt), params, min(self.context, self.pool.pages * PAGE))
        unmasking = params.unmasking or Unmasking()
        blocks, steps = unmasking.blocks(length)
        size = length // blocks
        ids = np.full(len(prompt) + length, self.mask, np.int32)
        ids[: len(prompt)] = prompt
        masked = np.arange(len(ids)) >= len(prompt)
        canvas = Canvas(ids, masked, len(prompt), (len(prompt), len(prompt) + size), self.shift)
        order = None
        if unmasking.remasking == "random":
            order = uniforms(params.seed or 0, 0, np.arange(len(ids)))
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos)
        own = Settling(canvas, params, unmasking, size, steps, steps, stops, order)
        self._plan(own)
        return Stream(request, 0, known=length, own=own, given=len(prompt))

    def admit(self, stream: Stream) -> bool:
        lease = self.pool.lease()
        if not self.pool.grow(lease, stream.own.canvas.length):
            lease.close()
            return False
        stream.leases = {"kv": lease}
        return True

    def resume(self, request: Request, said: Sequence[int]) -> Stream:
        raise UserError("a text that is settled place by place cannot go on elsewhere", param="said")

    def most(self, stream: Stream) -> int:
        length: int = stream.own.canvas.length
        return length

    def feed(self, stream: Stream, chunk: Chunk, now: float) -> None:
        raise UserError("a language model takes its whole prompt at once; open a new request instead", param="feed")

    def rewind(self, stream: Stream) -> None:
        canvas: Canvas = stream.own.canvas
        stream.own.rows = np.arange(canvas.length, dtype=np.int32)  # all of them are lost

    def close(self, stream: Stream) -> None:
        for lease in stream.leases.values():
            lease.close()
        stream.leases.clear()

    # ---- a step

    def _plan(self, own: Settling) -> None:
        """What the next step settles, as far as that is known before, and computes."""
        canvas = own.canvas
        lo, hi = canvas.block
        own.places = lo + np.flatnonzero(canvas.masked[lo:hi])
        if own.order is not None:
            own.places = canvas.chosen = own.places[surest(own.order[own.places], own.next())]
        own.rows = np.union1d(self.refresh.rows(canvas), own.places - self.shift).astype(np.int32)

    def ask(self, stream: Stream) -> Ask | None:
        n = stream.own.next()
        slo = stream.req.slo
        due = stream.due if stream.emitted_at is None else stream.emitted_at + n * slo.gap
        return Ask(stream, n, n, due, emits=True)

    def forecast(self, stream: Stream) -> None:
        return None  # it always asks

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        streams = [s for s, _ in grants]
        owns: list[Settling] = [s.own for s in streams]
        starts = np.zeros(len(grants) + 1, np.int32)
        np.cumsum([len(o.rows) for o in owns], out=starts[1:])
        owner = np.repeat(np.arange(len(grants), dtype=np.int32), np.diff(starts))
        pos = np.concatenate([o.rows for o in owns]).astype(np.int32)
        tables = self.pool.tables([s.leases["kv"] for s in streams])
        lengths = np.array([o.canvas.length for o in owns], np.int32)
        want = [starts[i] + np.searchsorted(o.rows, o.places - self.shift) for i, o in enumerate(owns)]
        return Batch(
            grants=tuple(grants),
            leases=tuple([s.leases for s in streams]),
            inputs=np.concatenate([o.canvas.ids[o.rows] for o in owns]),
            pos=pos,
            starts=starts,
            rows=self.pool.rows(tables, owner, pos),
            tables=tables,
            lo=np.zeros(len(pos), np.int32),
            hi=lengths[owner],
            want=np.concatenate(want).astype(np.int32),
        )

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """output (W, V) float32: logits of the rows that each stream looks at, one stream after the other."""
        events, at = [], 0
        for stream, n in batch.grants:
            own: Settling = stream.own
            count = len(own.places)
            settled = self._settle(own, output[at : at + count], n)
            at += count
            stream.done += n
            events.append(self._tell(stream, settled, now))
            if not stream.finished:
                self._hurry(stream, now)
                self._plan(own)
        return Outcome(events, [])

    def _settle(self, own: Settling, logits: Array, n: int) -> Array:
        """Take the surest; their places, ascending."""
        canvas, params, rule = own.canvas, own.params, own.unmasking.remasking
        logits = logits.copy()
        logits[:, self.mask] = -np.inf
        drawn = params.temperature > 0 or rule == "random"
        u = uniforms(params.seed or 0, 1 + canvas.step, own.places) if drawn else np.empty(0)
        tokens, sure = candidates(logits, params, rule, u)
        best = surest(sure, n)
        canvas.latest = own.places[best]
        canvas.ids[canvas.latest] = tokens[best]
        canvas.masked[canvas.latest] = False
        canvas.step += 1
        canvas.fresh = False
        own.computed += len(own.rows)
        own.in_block -= 1
        lo, hi = canvas.block
        if not canvas.masked[lo:hi].any() and hi < canvas.length:
            canvas.block, canvas.fresh, own.in_block = (hi, hi + own.size), True, own.per_block
        return canvas.latest

    def _tell(self, stream: Stream, settled: Array, now: float) -> Event:
        own: Settling = stream.own
        canvas = own.canvas
        begun = canvas.prompt + own.told
        holes = np.flatnonzero(canvas.masked[begun:])
        until = begun + int(holes[0]) if len(holes) else canvas.length
        fresh = canvas.ids[begun:until].tolist()
        finish = None if until < canvas.length else "length"
        for i, token in enumerate(fresh):
            if token in own.stops:  # what comes behind it is never told
                fresh, finish = fresh[: i + 1], "stop"
                break
        own.told += len(fresh)
        stream.finished = finish is not None
        stream.emitted_at = now
        if stream.finished:
            self.close(stream)
        places = [(int(p) - canvas.prompt, int(canvas.ids[p])) for p in settled]
        chosen = tuple([Chosen(token, None, ()) for token in fresh])
        data = Tokens(chosen, finish, canvas.prompt, 0, places, canvas.step, own.computed)
        return Event(stream.req.id, stream.index, data, stream.finished, now, units=len(settled))

    def _hurry(self, stream: Stream, now: float) -> None:
        """Plan for fewer steps where all would not be done in time, and the request allows it."""
        own: Settling = stream.own
        least, total = own.unmasking.min_steps, stream.req.slo.total
        if own.began is None:
            own.began = now
            return
        if least is None or total is None:
            return
        each = (now - own.began) / (own.canvas.step - 1)
        time = (stream.req.arrival + total - now) * SLACK
        if own.left * each > time:
            own.cut(max(int(time / each), least - own.canvas.step))


def check_texts(prompt: Sequence[int], params: object, vocab: int, context: int, room: int) -> None:
    """Whether a masked model can serve a request at all. ``room``: tokens that the pool holds.

    Raises:
        UserError: it cannot; ``param`` names the field.
    """
    if not isinstance(params, SamplingParams):
        raise UserError("a masked language model writes texts, and makes no vectors", param="model")
    most = min(context, room)
    length = check_masked(len(prompt), params, most)
    check_prompt(prompt, replace(params, max_tokens=length, unmasking=None), vocab, context, room)
