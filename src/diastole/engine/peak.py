"""Peak: whether those who run would still have room if one more were let in, until the last of them ends.

Streams grow while they speak, and give their room back when they end. If all go on at one pace, memory is fullest just
before one of them ends: then it and all that end later hold what they have now and as much more as that one lacks. How
long a text becomes is not known; it is taken to be as long as most recent ones that were longer than what it has said
already, and never longer than it may be. Idea: Gong et al., "Past-Future Scheduler for LLM Serving under SLA
Guarantees", ASPLOS 2025.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from diastole.state.pages import PAGE
from diastole.types import Stream

RECENT = 256  # texts that have ended
MOST = 0.9  # of those that were longer, so many were no longer than what is reckoned with


class Room(Protocol):
    """A policy of who is let in, as far as memory goes."""

    def has(self, running: Sequence[Stream], stream: Stream) -> bool:
        """Whether the stream may be let in. Only asked while somebody runs."""
        ...

    def ended(self, stream: Stream) -> None:
        """It has come to its end by itself."""
        ...


class Now:
    """Whoever finds room for what it brings is let in; who finds none later gives way."""

    def has(self, running: Sequence[Stream], stream: Stream) -> bool:
        return True

    def ended(self, stream: Stream) -> None:
        """Nothing is learned."""


class Peak:
    """See above.

    Args:
        pages: that there are.
        most: units that a stream may come to know.
    """

    def __init__(self, pages: int, most: Callable[[Stream], int]) -> None:
        self.pages, self.most = pages, most
        self._said: deque[int] = deque(maxlen=RECENT)

    def has(self, running: Sequence[Stream], stream: Stream) -> bool:
        return self.expected([*running, stream]) <= self.pages

    def ended(self, stream: Stream) -> None:
        if stream.speaks:
            self._said.append(stream.known - len(stream.req.inputs))

    def expected(self, streams: Sequence[Stream]) -> int:
        """Pages that these will hold at once, at most."""
        known = np.array([s.known for s in streams])
        lacks = np.array([self._lacks(s) for s in streams])
        order = np.argsort(lacks, kind="stable")
        known, lacks = known[order], lacks[order]
        return max(int((-(-(known[i:] + lacks[i]) // PAGE)).sum()) for i in range(len(streams)))

    def _lacks(self, stream: Stream) -> int:
        """Units that it will still come to know."""
        most = self.most(stream) - stream.known
        said = stream.known - len(stream.req.inputs)
        longer = sorted(n for n in self._said if n > said)
        if not longer:
            return max(most, 0)
        return max(min(longer[int(MOST * (len(longer) - 1) + 0.5)] - said, most), 0)
