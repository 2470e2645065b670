"""Ceilings: the most that one request may have, whatever it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from diastole.frontend.types import Delta
from diastole.params import SamplingParams
from diastole.types import UserError


class Ceilings:
    """Set once per server; 0: no such ceiling.

    Args:
        tokens: of one answer.
        seconds: of one generation, from its request to its end.
        count: is told of each generation that was cut short, by the name of the ceiling.
    """

    def __init__(self, tokens: int, seconds: float, count: Callable[[str], None]) -> None:
        self.tokens, self.seconds, self.count = tokens, seconds, count

    def usual(self, tokens: int) -> int:
        """A usual number of tokens, or the ceiling where that is lower."""
        return min(tokens, self.tokens) if self.tokens else tokens

    def check(self, params: SamplingParams) -> None:
        """Raises:
        UserError: the request asks for more tokens than it may have.
        """
        if self.tokens and params.max_tokens is not None and params.max_tokens > self.tokens:
            message = f"max_tokens may be at most {self.tokens} on this server, not {params.max_tokens}"
            raise UserError(message, param="max_tokens", code="invalid_value")

    def bound(self, params: SamplingParams, room: int) -> SamplingParams:
        """The same, ending at the ceiling if it names no end itself. ``room``: tokens that the context leaves."""
        if not self.tokens or params.max_tokens is not None or self.tokens >= room:
            return params
        return replace(params, max_tokens=self.tokens)

    def watch(self) -> Watch:
        """Begin to watch a generation."""
        return Timed(self.seconds, self.count) if self.seconds else Watch()


class Watch:
    """Follows one generation, here without a ceiling. ``reached``: a ceiling ended it."""

    reached = False

    def follow(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """The deltas, up to the ceiling. The caller closes ``deltas`` in any case."""
        return deltas


class Timed(Watch):
    """Ends a generation after some seconds, also when it is silent."""

    def __init__(self, seconds: float, count: Callable[[str], None]) -> None:
        self._end, self._count = asyncio.get_running_loop().time() + seconds, count

    async def follow(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        while True:
            try:
                async with asyncio.timeout_at(self._end):
                    delta = await anext(deltas)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not self.reached:
                    self._count("seconds")
                self.reached = True
                return
            yield delta
