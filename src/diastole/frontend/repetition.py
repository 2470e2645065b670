"""Repetition: notices that a text has become one block of tokens over and over.

Small models, and all models at temperature 0, can fall into a loop that only max_tokens ends. The bounds are wide
enough for what people do ask for: tables, matrices of zeros, a word a hundred times.
"""

from __future__ import annotations

LENGTHS = range(1, 65)  # tokens of a block
TIMES = 16  # a block must come one after the other
SPAN = 384  # tokens that the repetition must cover in all
STRIDE = 16  # tokens between looks, which makes a look cheap for each token
_REACH = max(SPAN, TIMES * LENGTHS[-1])


class Repetition:
    """The tokens of one choice."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._count = 0

    def push(self, id: int) -> bool:
        """One more token; whether the last ones repeat one block."""
        ids = self._ids
        ids.append(id)
        self._count += 1
        if self._count % STRIDE or self._count < SPAN:
            return False
        del ids[:-_REACH]
        return any(_repeats(ids, length) for length in LENGTHS)


def _repeats(ids: list[int], length: int) -> bool:
    """Whether the tail is a block of this length, often enough."""
    span = max(SPAN, TIMES * length)
    if span > len(ids) or ids[-1] != ids[-1 - length]:  # almost always settled here
        return False
    tail = ids[-span:]
    return tail[length:] == tail[:-length]
