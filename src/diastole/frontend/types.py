"""What the text face of a service gives its users: pieces of text with their token ids, what it cost, how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class EngineLost(RuntimeError):
    """The engine died while it worked on a request, or is not there to take it."""


class Likely(NamedTuple):
    """A token and its natural-log probability."""

    id: int
    logprob: float


class TokenLogprob(NamedTuple):
    """Log probability of a chosen token, and of the likeliest ones at its place (at most ``logprobs`` of them)."""

    id: int
    logprob: float
    top: tuple[Likely, ...]


class Usage(NamedTuple):
    """Tokens of one request so far: prompt, prompt tokens found in the prefix cache, generated (over all choices)."""

    prompt: int
    cached: int
    generated: int


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of one choice. ``finish`` is None until the choice's last piece.

    ``finish``: "stop" (end token or stop string), "length" (max_tokens or context), "repetition" (a loop), "abort",
    "error".
    """

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish: str | None
    usage: Usage
    stop: str | None = None  # the stop string that ended it
