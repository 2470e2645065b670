"""Steps in which every stream of a batch decodes: what ``AutoRegressive`` does for any batch, through few calls.

After a forward pass each call finds its code and data gone from the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diastole.loops.texts import Text, Tokens
from diastole.sample import Chosen, draw
from diastole.state.pages import PAGE
from diastole.types import Array, Ask, Batch, Event, Grant, Stream

_new = tuple.__new__  # a named tuple without the call that only names its fields


def ask(stream: Stream) -> Ask:
    """What a stream asks for that has one known token left to absorb."""
    slo = stream.req.slo
    due = stream.req.arrival + slo.first if stream.emitted_at is None else stream.emitted_at + slo.gap  # stream.due
    return _new(Ask, (stream, 1, 1, due, True, None))


def gather(grants: Sequence[Grant], starved: tuple[Stream, ...]) -> Batch:
    """The batch where every stream absorbs its last known token."""
    streams = [s for s, _ in grants]
    leases = [s.leases for s in streams]
    places = [x["kv"].places for x in leases]
    done = [s.done for s in streams]
    b, longest = len(streams), max(map(len, places))
    flat = [s.own.tip for s in streams]  # five arrays in one
    flat += done
    flat += [d + 1 for d in done]
    flat += [0] * b
    flat += range(b + 1)
    for row in places:
        flat += row
        flat += [0] * (longest - len(row))
    numbers = np.array(flat, np.int32)
    starts = numbers[4 * b : 5 * b + 1]
    return Batch(
        grants=grants,
        leases=tuple(leases),
        inputs=numbers[:b],
        pos=numbers[b : 2 * b],
        starts=starts,
        rows=np.array([row[d // PAGE] * PAGE + d % PAGE for row, d in zip(places, done, strict=True)], np.int64),
        tables=numbers[5 * b + 1 :].reshape(b, longest),
        lo=numbers[3 * b : 4 * b],
        hi=numbers[2 * b : 3 * b],
        want=starts[:b],
        starved=starved,
    )


def commit(
    batch: Batch, output: Array, now: float, offer: Callable[[Stream, int], None], close: Callable[[Stream], None]
) -> list[Event] | None:
    """The events of such a batch, where all tokens are chosen without more ado; None, and nothing is done: it is not so
    simple.

    Args:
        output: (B, V) float32: logits.
        offer: is told of streams that have filled a page, and how much they have absorbed.
        close: gives a stream's state back.
    """
    streams = [s for s, _ in batch.grants]
    texts: list[Text] = [s.own for s in streams]
    samplers = [t.sampler for t in texts]
    if not all([s.plain for s in samplers]) or any([t.twins for t in texts]):  # noqa: C419 - half the time
        return None
    try:
        ids = draw(samplers, output, [s.known for s in streams])
    except Exception:  # somebody's: who is told apart where rows are taken one by one
        return None
    events = []
    for stream, text, token in zip(streams, texts, ids, strict=True):
        done = stream.done = stream.known
        if not done % PAGE:
            offer(stream, done)
        if done == len(text.ids):
            text.widen()
        text.ids[done] = text.tip = token
        known = stream.known = done + 1
        stream.emitted_at = now
        finish = "stop" if token in text.stops else "length" if known >= text.limit else None
        if finish is not None:
            stream.finished = True
            close(stream)
        data = _new(Tokens, ((_new(Chosen, (token, None, ())),), finish, text.prompt, text.cached, (), 0, 0))
        events.append(_new(Event, (stream.req.id, stream.index, data, finish is not None, now, True, 1)))
    return events
