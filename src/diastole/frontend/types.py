"""What the text face of a service gives its users: pieces of text with their token ids, what it cost, how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class EngineLost(RuntimeError):
    """The engine died while it worked on a request, or is not there to take it."""


class RequestEnded(RuntimeError):
    """The engine ended a request by itself.

    Args:
        finish: "deadline": its promise for the whole had passed; "error": a step could not be run because of it.
    """

    def __init__(self, finish: str) -> None:
        super().__init__(f"the engine ended the request: {finish}")
        self.finish = finish


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
    """Tokens of one request so far: prompt, prompt tokens found in the prefix cache, and over all choices: generated,
    guessed ahead, and of those guesses the ones that became tokens."""

    prompt: int
    cached: int
    generated: int
    drafted: int = 0
    kept: int = 0


class Settled(NamedTuple):
    """A place of an answer that was settled."""

    place: int  # of the answer
    token: int
    text: str


class Settling(NamedTuple):
    """Of a text that is settled in any order: what this step settled, and what it took so far."""

    places: tuple[Settled, ...]
    steps: int
    rows: int  # that the steps computed; all of them, if nothing were kept, are steps times places


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of one choice. ``finish`` is None until the choice's last piece.

    ``finish``: "stop" (end token or stop string), "length" (max_tokens or context), "repetition" (a loop),
    "deadline" (the promise for the whole has passed), "abort", "error".
    """

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish: str | None
    usage: Usage
    stop: str | None = None  # the stop string that ended it
    settling: Settling | None = None  # of a text that is settled in any order
