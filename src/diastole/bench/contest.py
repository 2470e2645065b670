"""A contest: contenders take turns, A B C A B C ..., in one run, so that what the machine does meanwhile hits all."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diastole.bench.booth import Booth
from diastole.bench.field import Entry
from diastole.bench.neighbour import neighbour
from diastole.bench.task import Contender, Task

NEAR = 0.7  # of the best peer's speed in the first round; whoever is slower is measured once


@dataclass(slots=True)
class Result:
    """Speeds of one task, in tokens per second."""

    task: Task
    speeds: dict[str, list[float]] = field(default_factory=dict)  # by entry, one per round it took part in

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
    task: Task,
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    tell: Callable[[str], None],
) -> Result:
    """Measure one task.

    Every contender first does one turn that does not count. After the first round, peers that are far behind the best
    peer of their engine drop out; whoever stays is measured ``rounds`` times.

    Args:
        tell: is told what happens next, for progress.

    Raises:
        UserError: a contender could not be loaded or failed.
    """
    result = Result(task)
    with contextlib.ExitStack() as stack:
        booths = []
        for entry in entries:  # one after the other: loading takes all cores
            tell(f"{task.name}: loading {entry.name}")
            booth = stack.enter_context(Booth(entry, threads, task.streams, task.context))
            vocab = booth.ready()
            booths.append(booth)
        prompts = task.prompts(vocab)
        for booth in booths:
            tell(f"{task.name}: warming {booth.entry.name}")
            if task.steps:
                booth.begin(prompts)
                booth.decode(2)
            else:
                booth.prefill(prompts[0][: min(task.prompt, 512)])
        if task.neighbour:
            stack.enter_context(neighbour())
        for turn in range(rounds):
            for booth in list(booths):
                tell(f"{task.name}: {booth.entry.name}, round {turn + 1} of {rounds}")
                seconds = _turn(booth, task, vocab, turn)
                result.speeds.setdefault(booth.entry.name, []).append(task.tokens / seconds)
            if turn == 0:
                booths = list(_near(booths, result))
    return result


def _turn(contender: Contender | Booth, task: Task, vocab: int, turn: int) -> float:
    return contender.decode(task.steps) if task.steps else contender.prefill(task.prompts(vocab, turn)[0])


def _near(booths: Sequence[Booth], result: Result) -> Iterator[Booth]:
    """Those who go on: for each engine, whoever is near its best entry."""
    for booth in booths:
        rivals = [b.entry.name for b in booths if b.entry.engine == booth.entry.engine]
        best = max(result.speeds[name][0] for name in rivals)
        if booth.entry.engine == "diastole" or result.speeds[booth.entry.name][0] >= NEAR * best:
            yield booth
