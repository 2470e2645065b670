"""Texts: the private record of a stream that speaks, and what its events carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diastole.sample import Chosen, Sampler
from diastole.state.prefix import Key
from diastole.types import Array


class Tokens(NamedTuple):
    """What an event of this loop carries."""

    chosen: tuple[Chosen, ...]
    finish: str | None  # on the last event: "stop", "length", or "error" where a grammar led nowhere
    prompt: int  # tokens of the prompt
    cached: int  # of them found in the prefix cache
    settled: Sequence[tuple[int, int]] = ()  # of a text that is settled in any order: places and tokens of this step
    steps: int = 0  # of such a text so far
    rows: int = 0  # that these computed


@dataclass(eq=False, slots=True)
class Text:
    """The loop's private record of a stream that speaks."""

    ids: Array  # (capacity,) int32: prompt, then output; ``known`` of them are valid
    tip: int  # the last of these
    prompt: int
    sampler: Sampler
    limit: int  # ``known`` at which the stream ends with "length"
    stops: frozenset[int]
    space: str
    cached: int = 0
    twins: int = 0  # other choices still to be forked off when the prompt is absorbed
    ahead: int = 0  # tokens that it said last and has not absorbed, but for the last of them: nobody has yet
    drafted: int = 0  # tokens that were guessed
    kept: int = 0  # of them were right

    def prefix(self, known: int) -> Key:
        """Under what a cached beginning of the first ``known`` tokens is found, or kept."""
        return Key(self.space, self.ids[:known])

    def widen(self) -> None:
        """Room for as many tokens again."""
        self.ids = np.concatenate([self.ids, np.empty_like(self.ids)])
