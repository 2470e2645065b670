"""Running: the requests that the engine works on, whose they are, how far they are, and a hand to end them with."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from diastole.serve.errors import ApiError

if TYPE_CHECKING:
    from diastole.serve.replies import UsageReply


class Work(Protocol):
    """What is known of a request while it runs."""

    @property
    def id(self) -> str:
        """Of the answer: a kind, ``-`` or ``_``, and a part that no other answer has."""
        ...

    @property
    def model(self) -> str: ...

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        ...

    def usage(self) -> UsageReply:
        """Tokens so far."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One running request."""

    work: Work
    owner: bytes
    began: float  # on the monotonic clock
    scope: asyncio.Timeout


class Running:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}  # by the part of the id that no other has

    @asynccontextmanager
    async def enter(self, work: Work, owner: bytes) -> AsyncIterator[None]:
        """Be listed, and be ended if asked.

        Raises:
            ApiError: 499, it was cancelled.
        """
        key = bare(work.id)
        try:
            async with asyncio.timeout(None) as scope:  # without a time: it expires when it is cancelled
                self._entries[key] = Entry(work, owner, time.monotonic(), scope)
                try:
                    yield
                finally:
                    self._entries.pop(key, None)
        except TimeoutError:
            if not scope.expired():
                raise
            raise ApiError(499, "The request was cancelled.", code="request_cancelled") from None

    def of(self, owner: bytes) -> Iterator[tuple[Work, float]]:
        """The owner's requests, oldest first, each with its age in seconds."""
        now = time.monotonic()
        return ((e.work, now - e.began) for e in self._entries.values() if e.owner == owner)

    def cancel(self, id: str, owner: bytes) -> str | None:
        """End a request, given by its whole id or the last part of it.

        Returns:
            its whole id; None if the owner has no such request running.
        """
        entry = self._entries.get(bare(id))
        if entry is None or entry.owner != owner or id not in (entry.work.id, bare(id)):
            return None
        del self._entries[bare(id)]
        entry.scope.reschedule(asyncio.get_running_loop().time())
        return entry.work.id


def bare(id: str) -> str:
    """The last part of an answer's id."""
    return re.split("[-_]", id)[-1]
