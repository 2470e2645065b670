"""Guesses: what drafts have brought a stream, read off the records of loops that draft; others keep no such record."""

from __future__ import annotations

from typing import NamedTuple

from diastole.types import Stream


class Guesses(NamedTuple):
    """Tokens, over the whole life of a stream."""

    drafted: int = 0  # verified
    kept: int = 0  # of them were right


NONE = Guesses()


def guesses_of(stream: Stream) -> Guesses:
    """So far."""
    own = stream.own
    return Guesses(getattr(own, "drafted", 0), getattr(own, "kept", 0))
