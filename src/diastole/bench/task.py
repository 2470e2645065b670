"""What is measured: tasks of two kinds, and the contenders that can do them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Prompt = Sequence[int]


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a comparison.

    Args:
        name: unique, as users select it.
        streams: requests at once, each with its own state.
        prompt: tokens of each prompt.
        steps: tokens that each stream generates in one turn; 0: the turn is the prefill itself.
        neighbour: whether another process keeps one core busy meanwhile.
    """

    name: str
    streams: int
    prompt: int
    steps: int = 0
    neighbour: bool = False

    @property
    def context(self) -> int:
        """Tokens that a stream may come to hold, with room for sixteen turns."""
        return self.prompt + 16 * max(self.steps, 4)

    @property
    def tokens(self) -> int:
        """Of one turn."""
        return self.streams * (self.steps or self.prompt)

    def prompts(self, vocab: int, turn: int = 0) -> list[Prompt]:
        """Token ids of every stream's prompt, the same for all contenders; each turn has others, so nothing cached
        helps."""
        rng = np.random.default_rng([turn, self.prompt])
        return rng.integers(100, vocab - 100, (self.streams, self.prompt)).tolist()


class Contender(Protocol):
    """An engine with one model, measured in a process of its own. All answers are greedy."""

    vocab: int

    def prefill(self, prompt: Prompt) -> float:
        """Seconds from a prompt to its first token."""
        ...

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """Take the prompts in and leave the streams ready to generate."""
        ...

    def decode(self, steps: int) -> float:
        """Seconds in which every stream generates so many more tokens, all streams together step by step."""
        ...

    def end(self) -> None:
        """Let the streams go."""
        ...
