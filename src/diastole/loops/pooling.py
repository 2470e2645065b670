"""Pooling: a stream that only reads ends when its prompt is absorbed, with one vector made of the hidden states.

The vector must not depend on company or chunks. Hidden states do not (they are as batch-invariant as logits), so it is
enough to add them one by one in the order of the prompt. All of them are needed, and a cached prefix brings only keys
and values: so such a stream starts without one. It leaves none behind either, because what is read once, and by the
thousand, would drive out the prefixes of conversations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diastole.params import Pooling
from diastole.types import Array, Grant, Stream, Tap, UserError


class Pooled(NamedTuple):
    """What the one event of such a stream carries."""

    vector: Array  # (d,) float32, of length 1
    prompt: int  # tokens read


class Reading:
    """The loop's private record of a stream that only reads.

    Args:
        ids: the prompt, (n,) int32.
        width: d.
    """

    def __init__(self, ids: Array, kind: Pooling, width: int) -> None:
        self.ids, self.prompt, self.cached = ids, len(ids), 0
        self._kind = kind
        self._sum = np.zeros(width)  # float64, of what the kind takes

    def prefix(self, known: int) -> None:
        """Nothing cached is of use."""

    def absorb(self, done: int, hidden: Array) -> None:
        """hidden (n, d) float32: of the tokens after the first ``done``. With 0 it begins anew: it was preempted."""
        if done == 0:
            self._sum[:] = 0
        if self._kind == "mean":
            for row in hidden:  # not ``sum``, which is free to add in another order
                self._sum += row
        else:
            self._sum[:] = hidden[-1]

    def result(self) -> Pooled:
        """The vector: of length 1, so that the sum stands for the mean."""
        return Pooled(unit(self._sum), self.prompt)


def unit(vector: Array) -> Array:
    """The vector with length 1, float32; all zeros stay so."""
    wide = vector.astype(np.float64)
    return (wide / (math.sqrt(math.fsum(wide * wide)) or 1.0)).astype(np.float32)


def tap(grants: Sequence[Grant], starts: Array, width: int) -> Tap | None:
    """All rows of streams that only read; None if there are no such streams."""
    reading = [(lo, n) for (s, n), lo in zip(grants, starts, strict=False) if not s.speaks]
    if not reading:
        return None
    rows = np.concatenate([np.arange(lo, lo + n, dtype=np.int32) for lo, n in reading])
    return Tap(rows, np.empty((len(rows), width), np.float32))


def absorb(grants: Sequence[Grant], tap: Tap) -> list[Stream]:
    """Give each stream that only reads its rows; its ``done`` has advanced past them. Returns those that finished."""
    finished = []
    at = 0
    for stream, n in grants:
        if stream.speaks:
            continue
        stream.own.absorb(stream.done - n, tap.hidden[at : at + n])
        at += n
        stream.finished = stream.done == stream.known
        if stream.finished:
            finished.append(stream)
    return finished


def check_length(prompt: int, room: int) -> None:
    """Raises:
    UserError: the prompt has more tokens than fit.
    """
    if prompt > room:
        raise UserError(
            f"the prompt has {prompt} tokens, more than the context of {room}",
            param="prompt",
            code="context_length_exceeded",
        )
