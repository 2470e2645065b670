"""Running the suite: dense attention sees every case once, then each stack of techniques sees the same cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean

from diastole.bench.longcontext.case import Case, Marks, judge, observe
from diastole.bench.longcontext.tasks import ALL, TASKS, Task
from diastole.bench.longtext import Corpus
from diastole.bench.rig import Rig
from diastole.types import Array, UserError


@dataclass(frozen=True, slots=True)
class Kept:
    """A case with what dense attention said to it: 200 KB per token of the answers, with the embedded model."""

    case: Case
    dense: list[Array]  # (steps, V) float32 of each question

    @classmethod
    def of(cls, dense: Rig, case: Case) -> Kept:
        return cls(*observe(dense, case))

    def judge(self, rig: Rig) -> list[Marks]:
        """What a rig says to it; one of each question."""
        _, seen = observe(rig, self.case)
        return [judge(q, own, dense) for q, own, dense in zip(self.case.questions, seen, self.dense, strict=True)]

    def judge_dense(self) -> list[Marks]:
        """What dense attention said to it."""
        return [judge(q, dense, dense) for q, dense in zip(self.case.questions, self.dense, strict=True)]


@dataclass(frozen=True, slots=True)
class Found:
    """A task at one length: marks of all questions, of dense attention and of the stack."""

    task: str
    length: int
    dense: list[Marks]
    own: list[Marks]


def mean(marks: Sequence[Marks], name: str) -> float:
    """Of one mark over questions; "perplexity" is that of all their tokens."""
    if name == "perplexity":
        return exp(-fmean(m.logprob for m in marks))
    return fmean(getattr(m, name) for m in marks)


def by_label(marks: Sequence[Marks], name: str) -> dict[str, float]:
    """The same for each label, such as a depth."""
    labels = dict.fromkeys(m.label for m in marks if m.label)
    return {label: mean([m for m in marks if m.label == label], name) for label in labels}


def chosen(names: str) -> dict[str, Task]:
    """Tasks from names with commas between; none: all on real text.

    Raises:
        UserError: there is no such task.
    """
    wanted = [n.strip() for n in names.split(",") if n.strip()] or list(TASKS)
    for name in wanted:
        if name not in ALL:
            raise UserError(f"unknown task {name!r}; there are {', '.join(ALL)}", param="tasks")
    return {n: ALL[n] for n in wanted}


def lengths(text: str) -> list[int]:
    """Lengths from "1k,2k,7000": k is 1,000 tokens.

    Raises:
        UserError: one is no number, or below 256.
    """
    found = []
    for part in (p.strip() for p in text.split(",")):
        digits = part.removesuffix("k")
        n = int(digits) * (1000 if part.endswith("k") else 1) if digits.isdecimal() and len(digits) < 8 else 0
        if n < 256:
            raise UserError(f"lengths: {part!r:.40} must be a number of tokens from 256, such as 1k", param="lengths")
        found.append(n)
    return found


def cases(tasks: dict[str, Task], wanted: Iterable[int], corpus: Corpus, count: int, seed: int) -> Iterator[Planned]:
    """All of a study, lengths in order."""
    for n in wanted:
        for name, task in tasks.items():
            yield Planned(name, n, task.cases(corpus, n, count, seed))


@dataclass(frozen=True, slots=True)
class Planned:
    """The cases of one task at one length."""

    task: str
    length: int
    cases: list[Case]


def room(planned: Sequence[Planned]) -> tuple[int, int]:
    """The context and the streams that a rig needs for these."""
    every = [c for p in planned for c in p.cases]
    return max(c.longest for c in every) + 1, 1 + max(len(c.questions) for c in every)


def study(dense: Rig, own: Rig, planned: Sequence[Planned], tell: Callable[[str], None]) -> Iterator[Found]:
    """Both rigs on all cases, case by case, so that only one case's logits are held.

    Args:
        tell: is told the task and length before each case.
    """
    for plan in planned:
        found = Found(plan.task, plan.length, [], [])
        for case in plan.cases:
            tell(f"{plan.task} at {plan.length:,} tokens")
            kept = Kept.of(dense, case)
            found.dense.extend(kept.judge_dense())
            found.own.extend(kept.judge(own))
        yield found
