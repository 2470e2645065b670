"""Latency: what an iteration of an instance takes, in DistServe's form (arXiv 2401.09670, section 3 and appendix A).

    prefill = base + token · Σ length + square · Σ length²
    decode  = base + context · cached tokens + stream · streams      other coefficients from a bound of streams on

A pipeline of ``stages`` divides both by their number; every stage of a prefill adds what handing on costs. Each
iteration costs the runtime a little on its first stage. All in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Prefill(NamedTuple):
    """Coefficients in seconds."""

    base: float
    token: float
    square: float

    def seconds(self, lengths: Sequence[int]) -> float:
        """Of these prompts together."""
        return self.base + self.token * sum(lengths) + self.square * sum(n * n for n in lengths)


class Line(NamedTuple):
    """Coefficients in seconds of a decode step."""

    base: float
    context: float  # per token in the cache
    stream: float

    def seconds(self, context: int, streams: int) -> float:
        return self.base + self.context * context + self.stream * streams


class Decode(NamedTuple):
    """A line for few streams, and one from ``bound`` streams on."""

    few: Line
    many: Line
    bound: int

    def line(self, streams: int) -> Line:
        return self.few if streams < self.bound else self.many

    def seconds(self, context: int, streams: int) -> float:
        """Of one token of each of ``streams`` streams with ``context`` tokens cached together."""
        return self.line(streams).seconds(context, streams)


class Chunk(NamedTuple):
    """A piece of a prompt."""

    done: int  # tokens before it
    tokens: int


class Seconds(NamedTuple):
    """What one iteration takes."""

    first: float  # extra on the first stage
    stage: float  # on every stage


@dataclass(frozen=True, slots=True)
class Latency:
    """An instance's iterations.

    Args:
        stages: of its pipeline.
        hand_on: seconds that each stage of a prefill takes longer for each stage that there is (published: 1 ms).
        overhead: seconds of the runtime per iteration (published: 2 ms).
        overhead_token: and per token of it (published: 1e-4 ms).
    """

    prefill: Prefill
    decode: Decode
    stages: int = 1
    hand_on: float = 0.001
    overhead: float = 0.002
    overhead_token: float = 1e-7

    def of_prompts(self, lengths: Sequence[int]) -> Seconds:
        """Of a batch of whole prompts."""
        return self._spread(self.prefill.seconds(lengths), sum(lengths), self._handing)

    def of_step(self, context: int, streams: int) -> Seconds:
        """Of one token of each stream."""
        return self._spread(self.decode.seconds(context, streams), context, 0.0)

    def of_mix(self, chunks: Sequence[Chunk], context: int, streams: int) -> Seconds:
        """Of pieces of prompts and one token of each stream in one batch. The weights are read once, so the larger base
        counts alone: an assumption, since nobody published a fit of such batches."""
        if not chunks:
            return self.of_step(context, streams)
        p, line = self.prefill, self.decode.line(streams)
        tokens = sum(n for _, n in chunks)
        squares = sum((done + n) ** 2 - done**2 for done, n in chunks)
        rows = line.context * context + line.stream * streams
        base = max(p.base, line.base) if streams else p.base
        return self._spread(base + p.token * tokens + p.square * squares + rows, tokens + context, self._handing)

    def unloaded_prefill(self, length: int) -> float:
        """Seconds to the first token of a prompt that finds nobody there."""
        first, stage = self.of_prompts([length])
        return first + stage * self.stages

    def unloaded_step(self, context: int) -> float:
        """Seconds between two tokens of a stream that is alone."""
        first, stage = self.of_step(context, 1)
        return first + stage * self.stages

    @property
    def _handing(self) -> float:
        return self.hand_on * self.stages

    def _spread(self, seconds: float, tokens: int, handing: float) -> Seconds:
        return Seconds(self.overhead + self.overhead_token * tokens, seconds / self.stages + handing)


def saturation(prefill: Prefill, share: float = 0.9, most: int = 8192) -> int:
    """L_m: the fewest prompt tokens, of one prompt, that bring ``share`` of the most tokens per second that any length
    up to ``most`` does. DistServe measures where throughput stops growing (section 3.1); the share is an assumption."""
    speeds = [n / prefill.seconds([n]) for n in range(1, most + 1)]
    enough = share * max(speeds)
    return next(n for n, speed in enumerate(speeds, 1) if speed >= enough)
