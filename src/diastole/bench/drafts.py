"""What drafts bring: the same requests with and without, taking turns, by kind of work and number of streams.

Greedy, so that every text can be compared with the plain engine's token by token. Prompts are absorbed beforehand: what
is timed is decoding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from diastole.params import SamplingParams

PLAIN = "plain"


@dataclass(slots=True)
class Side:
    """One engine's figures for one kind of work and number of streams."""

    seconds: list[float] = field(default_factory=list)  # by round
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    kept: int = 0
    different: int = 0  # texts that are not the plain engine's

    @property
    def per_step(self) -> float:
        """Tokens of a stream by step."""
        return self.tokens / max(self.steps, 1)

    @property
    def rate(self) -> float:
        """Of the guesses, how many were right."""
        return self.kept / max(self.drafted, 1)


@dataclass(frozen=True, slots=True)
class Cell:
    """All sides of one kind of work at one number of streams."""

    work: str
    streams: int
    tokens: int  # of an answer
    sides: dict[str, Side]

    def ratios(self, name: str, over: str = PLAIN) -> list[float]:
        """How many times as fast as the other, by round."""
        return [b / a for a, b in zip(self.sides[name].seconds, self.sides[over].seconds, strict=True)]

    def speedup(self, name: str, over: str = PLAIN) -> float:
        return statistics.median(self.ratios(name, over))


class Speaking(Protocol):
    """A language model in this process: ``diastole.LLM``."""

    def generate(self, prompts: Sequence[Any], params: SamplingParams | None = None) -> Sequence[Sequence[Any]]: ...

    def counters(self) -> Mapping[str, int]: ...


class Bench:
    """Engines of one model, with one technique or several each.

    Args:
        engines: by name; ``PLAIN`` is the one that drafts nothing.
        params: of all requests; greedy without an end unless told.
    """

    def __init__(self, engines: Mapping[str, Speaking], params: SamplingParams | None = None) -> None:
        self.engines = engines
        self.params = params or SamplingParams(max_tokens=128, temperature=0, ignore_eos=True)
        self._warm = False

    def cell(
        self,
        work: str,
        prompts: Sequence[Sequence[int]],
        streams: int,
        rounds: int = 3,
        tell: Callable[[], None] = lambda: None,
    ) -> Cell:
        """Run all prompts, ``streams`` at a time, in every engine, so many times; who begins changes from run to run.
        tell: hears of every run."""
        self._warm_up(prompts[:streams])
        names = [*self.engines]
        sides = {name: Side() for name in names}
        for turn in range(rounds):
            for side in sides.values():
                side.seconds.append(0.0)
            for nth, at in enumerate(range(0, len(prompts) - streams + 1, streams)):
                said: dict[str, list[list[int]]] = {}
                first = (turn + nth) % len(names)
                for name in names[first:] + names[:first]:
                    said[name] = self._run(sides[name], self.engines[name], prompts[at : at + streams])
                    tell()
                for name in names[1:] if turn == 0 else ():
                    sides[name].different += sum(a != b for a, b in zip(said[name], said[names[0]], strict=True))
        return Cell(work, streams, self.params.max_tokens or 0, sides)

    def _warm_up(self, prompts: Sequence[Sequence[int]]) -> None:
        """An engine's first steps find nothing where it will be: whoever was first would be the slowest."""
        if not self._warm:
            for llm in self.engines.values():
                llm.generate(prompts, SamplingParams(max_tokens=16, temperature=0, ignore_eos=True))
        self._warm = True

    def _run(self, side: Side, llm: Speaking, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
        before = dict(llm.counters())
        began = time.perf_counter()
        done = llm.generate(prompts, self.params)
        side.seconds[-1] += time.perf_counter() - began
        gone = {name: n - before.get(name, 0) for name, n in llm.counters().items()}
        side.tokens += sum(len(c[0].ids) for c in done) // len(prompts)
        side.steps += gone["steps"]
        side.drafted += gone.get("spec_decode_num_draft_tokens", 0)
        side.kept += gone.get("spec_decode_num_accepted_tokens", 0)
        return [c[0].ids for c in done]
