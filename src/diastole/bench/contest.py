"""A contest: contenders take turns, A B C A B C ..., in one run, so that what the machine does meanwhile hits all."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diastole.bench.booth import Booth
from diastole.bench.field import LONG, Entry
from diastole.bench.limits import Needs
from diastole.bench.neighbour import neighbour
from diastole.bench.task import Task
from diastole.types import UserError

NEAR = 0.7  # of the best of its engine in the first round: whoever is slower is measured once
PAUSE = 0.5  # seconds before a turn: some engines' threads go on spinning for a while after theirs
WARM = 512  # tokens of the prompt that does not count


@dataclass(slots=True)
class Result:
    """Speeds of one task, in tokens per second."""

    task: Task
    speeds: dict[str, list[float]] = field(default_factory=dict)  # by entry, one per round it took part in
    needs: Needs | None = None  # of the first entry
    failed: dict[str, str] = field(default_factory=dict)  # entries that could not run, and why

    def median(self, name: str) -> float:
        return statistics.median(self.speeds[name])

    def best(self, names: Sequence[str]) -> str | None:
        """The fastest of some entries among those that ran most rounds, None if none took part."""
        there = [n for n in names if n in self.speeds]
        most = max((len(self.speeds[n]) for n in there), default=0)
        return max((n for n in there if len(self.speeds[n]) == most), key=self.median, default=None)

    def ratio(self, ours: str, theirs: str) -> tuple[float, float, float]:
        """How many times as fast: the median of the rounds' ratios, the least and the greatest."""
        each = [a / b for a, b in zip(self.speeds[ours], self.speeds[theirs], strict=False)]
        return statistics.median(each), min(each), max(each)


def run(
    task: Task, entries: Sequence[Entry], threads: int, rounds: int, tell: Callable[[str], None] = lambda what: None
) -> Result:
    """Measure one task.

    Every contender first does one turn that does not count. After the first round, entries that are far behind the best
    of their engine drop out; whoever stays is measured ``rounds`` times.

    Args:
        tell: is told what happens next, for progress.

    Raises:
        UserError: Diastole could not be loaded, or a contender failed later.
    """
    result = Result(task)
    with contextlib.ExitStack() as stack:
        booths: list[Booth] = []
        vocab = 0
        for entry in entries:  # one after the other: loading takes all cores
            tell(f"loading and warming {entry.name}")
            booth = stack.enter_context(Booth(entry, threads, task.streams, task.context))
            try:
                vocab = _warm(booth, task)
            except UserError as e:
                if entry.engine == "diastole":
                    raise
                result.failed[entry.name] = e.message  # a peer that cannot run is told, and the others go on
                continue
            booths.append(booth)
        if entries[0].engine == "diastole":
            result.needs = booths[0].needs()
        if task.neighbour:
            stack.enter_context(neighbour())
        for turn in range(rounds):
            for booth in list(booths):
                tell(f"round {turn + 1} of {rounds}: {booth.entry.name}")
                if turn > 0 and task.steps and task.prompt < LONG:
                    _begin(booth, task, vocab, turn)
                time.sleep(PAUSE)
                seconds = booth.decode(task.steps) if task.steps else booth.prefill(task.prompts(vocab, turn)[0])
                result.speeds.setdefault(booth.entry.name, []).append(task.tokens / seconds)
            if turn == 0:
                booths = list(_near(booths, result))
    return result


def _warm(booth: Booth, task: Task) -> int:
    """The turn that does not count; the size of the vocabulary."""
    vocab = booth.ready()
    if task.steps:
        _begin(booth, task, vocab, 0)
    else:
        booth.prefill(task.prompts(vocab)[0][:WARM])
    return vocab


def _begin(booth: Booth, task: Task, vocab: int, turn: int) -> None:
    """Bring the streams to the context that the task names: they must not grow from round to round."""
    booth.end()
    booth.begin(task.prompts(vocab, turn))
    booth.decode(2)


def _near(booths: Sequence[Booth], result: Result) -> Iterator[Booth]:
    """Those who go on: for each engine, whoever is near its best entry, and its first in any case."""
    seen: dict[str, float] = {}
    for booth in booths:
        speed = result.speeds[booth.entry.name][0]
        seen[booth.entry.engine] = max(speed, seen.get(booth.entry.engine, 0))
    ours = [b for b in booths if b.entry.engine == "diastole"]
    for booth in booths:
        if booth in ours or result.speeds[booth.entry.name][0] >= NEAR * seen[booth.entry.engine]:
            yield booth
