"""Ceilings: the most that one request may have, whatever it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from diastole.frontend.types import Delta
from diastole.params import SamplingParams
from diastole.serve.energy import Energy, Share
from diastole.types import UserError


class Ceilings:
    """Set once per server; 0: no such ceiling.

    Args:
        tokens: of one answer.
        seconds: of one generation, from its request to its end.
        joules: of one generation; needs ``energy``.
        count: is told of each generation that was cut short, by the name of the ceiling.
    """

    def __init__(
        self, tokens: int, seconds: float, joules: float, energy: Energy | None, count: Callable[[str], None]
    ) -> None:
        self.tokens, self.seconds, self.joules, self.energy, self._count = tokens, seconds, joules, energy, count

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

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Watch a generation, from now on."""
        with ExitStack() as stack:
            watch = Watch()
            if self.energy is not None:
                share = stack.enter_context(self.energy.share())
                watch = _Metered(self._end(), self.energy, share, self.joules)
            elif self.seconds:
                watch = _Timed(self._end())
            yield watch
        if watch.cut:
            self._count(watch.reached)

    def _end(self) -> float | None:
        """When time will be up, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.seconds if self.seconds else None


class Watch:
    """Follows one generation, here without a ceiling.

    ``reached`` names the ceiling that ended it; ``cut`` is set by the generation if there was more to come.
    """

    reached = ""
    cut = False

    def follow(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """The deltas, up to the ceiling. The caller closes ``deltas`` in any case."""
        return deltas


class _Timed(Watch):
    """Ends a generation when time is up, also when it is silent."""

    def __init__(self, end: float | None) -> None:
        self._end = end

    async def follow(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        first = True
        while not self.reached:
            try:
                async with asyncio.timeout_at(self._end) as time:
                    delta = await anext(deltas)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not time.expired():
                    raise
                self.reached = "seconds"
                return
            yield delta
            self.spend(len(delta.ids) + (delta.usage.prompt - delta.usage.cached if first else 0))
            first = False

    def spend(self, tokens: int) -> None:
        """Tokens were taken or given."""


class _Metered(_Timed):
    """Ends a generation also when its energy is used up."""

    def __init__(self, end: float | None, energy: Energy, share: Share, most: float) -> None:
        super().__init__(end)
        self._energy, self._share, self._most = energy, share, most

    def spend(self, tokens: int) -> None:
        if self._energy.add(self._share, tokens) > self._most:
            self.reached = self.reached or "joules"
