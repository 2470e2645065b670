"""Blocks: key/value memory of an instance, counted and not held."""

from __future__ import annotations

BLOCK = 16  # tokens, as in DistServe's engine


def whole(tokens: int) -> int:
    """So many tokens, rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK


class Room:
    """For so many tokens, in blocks.

    Attributes:
        total, free: tokens, multiples of a block.
    """

    def __init__(self, tokens: int) -> None:
        self.total = self.free = tokens // BLOCK * BLOCK

    def take(self, tokens: int) -> None:
        """Raises:
        ValueError: there is not so much.
        """
        if not 0 <= tokens <= self.free or tokens % BLOCK:
            raise ValueError(f"room for {tokens} tokens cannot be taken of {self.free}")
        self.free -= tokens

    def give(self, tokens: int) -> None:
        """Raises:
        ValueError: more comes back than was taken.
        """
        if not 0 <= tokens <= self.total - self.free or tokens % BLOCK:
            raise ValueError(f"room for {tokens} tokens cannot come back where {self.total - self.free} is taken")
        self.free += tokens
