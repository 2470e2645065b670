"""The face that every loop shows to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from diastole.live import Chunk
from diastole.types import Array, Ask, Batch, Grant, Outcome, Request, Stream


class Loop(Protocol):
    """How one kind of model decodes in time."""

    unit: str
    repeatable: bool  # a batch whose forward pass failed may be prepared and run again: its streams' state is as before

    def check(self, request: Request) -> None:
        """Raises:
        UserError: this request can never be served (too long, unknown ids, ...).
        """
        ...

    def preparation(self, request: Request) -> Callable[[], object] | None:
        """Work that ``open`` would do on the engine's thread, for who can do it elsewhere before; None: there is none.

        What it raises as UserError, ``open`` would raise too.
        """
        ...

    def open(self, request: Request) -> Stream:
        """A stream without state: ``known`` is what the request brings, ``done`` is 0."""
        ...

    def admit(self, stream: Stream) -> bool:
        """Give it leases, reusing what is cached; False when there is no room for it yet."""
        ...

    def resume(self, request: Request, said: Sequence[int]) -> Stream:
        """A stream that has given so much output already, elsewhere.

        Raises:
            UserError: streams of this kind, or such ones, cannot go on elsewhere.
        """
        ...

    def most(self, stream: Stream) -> int:
        """Units that it may come to know, as far as is known now."""
        ...

    def feed(self, stream: Stream, chunk: Chunk, now: float) -> None:
        """Live input: ``known`` grows from outside."""
        ...

    def ask(self, stream: Stream) -> Ask | None:
        """What the stream could run now; None: nothing."""
        ...

    def forecast(self, stream: Stream) -> tuple[float, Grant] | None:
        """For a stream that is idle right now: the deadline it will have next and the work that will then be due."""
        ...

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        """Grow leases and gather inputs. Streams for which there was no room come back as ``starved``."""
        ...

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """Take the model's output in: ``done`` and ``known`` advance, events go out, finished streams are closed."""
        ...

    def rewind(self, stream: Stream) -> None:
        """Forget the state: it will be computed again from what is known."""
        ...

    def close(self, stream: Stream) -> None:
        """Give back whatever the stream holds. Harmless when repeated."""
        ...
