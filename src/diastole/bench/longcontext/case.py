"""A case of the suite: a context, and questions whose answers are fed token by token and judged.

    context ............ absorbed in chunks, once for all its questions, which are forks of it
    question.given ..... fed one token at a time: here a technique that acts while decoding already acts
    question.answer .... fed likewise; the logits before each of its tokens are what is judged

An answer that greedy decoding would give is recognised without generating: if every token of it is the first choice
after the ones before it, then greedy decoding says just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diastole.bench.quality import log_softmax
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.bench.rig import Rig


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a context.

    Args:
        given: tokens before the answer; at least one, so that the answer's first token is decoded and not the prompt's.
        answer: what is right; empty: whatever dense attention says greedily, ``steps`` tokens of it.
        label: what to group results by, such as a depth.
    """

    given: tuple[int, ...]
    answer: tuple[int, ...]
    steps: int
    label: str = ""

    @classmethod
    def of(cls, given: Sequence[int], answer: Sequence[int], label: str = "") -> Question:
        return cls(tuple(given), tuple(answer), len(answer), label)


@dataclass(frozen=True, slots=True)
class Case:
    """A context with its questions."""

    context: tuple[int, ...]
    questions: tuple[Question, ...]

    @property
    def longest(self) -> int:
        """Tokens that a stream comes to hold."""
        return len(self.context) + max(len(q.given) + q.steps for q in self.questions)


@dataclass(frozen=True, slots=True)
class Marks:
    """One answer, judged.

    Args:
        logprob: of the right tokens, mean in nats.
        right: share of its tokens that were the first choice.
        exact: whether all were.
        rank: worst place of a right token among all tokens; 0 is the first choice.
        divergence: of the distributions from the dense ones (Kullback-Leibler), mean in nats per token.
        equal: share of first choices equal to the dense ones.
        agreed: tokens before the first choice that differs from the dense one.
    """

    label: str
    logprob: float
    right: float
    exact: bool
    rank: int
    divergence: float
    equal: float
    agreed: int


def observe(rig: Rig, case: Case) -> tuple[Case, list[Array]]:
    """Ask a rig everything: the case with open answers filled in by what it said, and for each question the logits
    (steps, V) float32 before each token of the answer. The rig needs room for one stream more than there are questions.
    """
    said = [list(q.answer) for q in case.questions]
    seen: list[list[Array]] = [[] for _ in said]
    with ExitStack() as held:
        with rig.stream(case.context) as trunk:
            rig.absorb(trunk)
            forks = [rig.fork(trunk) for _ in said]
            for fork in forks:
                held.callback(rig.close, fork)
        for i in range(max(len(q.given) + q.steps for q in case.questions) - 1):
            live = [j for j, q in enumerate(case.questions) if i < len(q.given) + q.steps - 1]
            logits = rig.step({forks[j]: (*case.questions[j].given, *said[j])[i] for j in live})
            for j, row in zip(live, logits, strict=True):
                if i >= len(case.questions[j].given) - 1:
                    seen[j].append(row.copy())
                    if len(said[j]) < len(seen[j]):
                        said[j].append(int(row.argmax()))
    settled = tuple(replace(q, answer=tuple(s)) for q, s in zip(case.questions, said, strict=True))
    return replace(case, questions=settled), [np.stack(rows) for rows in seen]


def judge(question: Question, logits: Array, dense: Array) -> Marks:
    """logits, dense (steps, V): before each token of the answer, of the technique and of dense attention."""
    own, exact = log_softmax(logits), log_softmax(dense)
    answer = np.array(question.answer)
    picked = own[np.arange(len(answer)), answer]
    hit = own.argmax(-1) == answer
    same = own.argmax(-1) == exact.argmax(-1)
    return Marks(
        label=question.label,
        logprob=float(picked.mean()),
        right=float(hit.mean()),
        exact=bool(hit.all()),
        rank=int((own > picked[:, None]).sum(-1).max()),
        divergence=float((np.exp(exact) * (exact - own)).sum(-1).mean()),
        equal=float(same.mean()),
        agreed=len(same) if same.all() else int(same.argmin()),
    )
