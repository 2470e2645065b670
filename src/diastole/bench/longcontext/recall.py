"""A made-up language of recall: pairs of a key and a value among filler, and questions about them.

    <s> f7 f31 k12 v5 f2 ... k40 v61 f9 f9 <ask> k12 v5 <ask> k40 v61 ...
                  pairs in filler         |        questions, answered

Every word is one token, every key occurs in one pair, and nothing but that pair tells the answer, so whether a question
is answered shows whether the pair's rows are still remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from diastole.bench.longcontext.case import Case, Question
from diastole.bench.longtext import Corpus
from diastole.types import Array, UserError

START, ASK, END, UNKNOWN = range(4)
KEYS, VALUES, FILLERS = 96, 64, 92
FIRST_KEY = 4
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_FILLER = FIRST_VALUE + VALUES
WORDS = (
    "<s>", "<ask>", "</s>", "<unk>",
    *(f"k{i}" for i in range(KEYS)), *(f"v{i}" for i in range(VALUES)), *(f"f{i}" for i in range(FILLERS)),
)  # fmt: skip
_THIRDS = ("begin", "middle", "end")


def context(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """``n`` tokens, one pair per eight of them as far as there are keys: ids (n,) int64, places of the keys (P,)."""
    pairs = min(max(n // 8, 1), KEYS)
    ids = rng.integers(FIRST_FILLER, FIRST_FILLER + FILLERS, n)
    ids[0] = START
    # Distinct places in a row that is shorter by one per pair, moved apart again: no two pairs overlap.
    at = 1 + np.sort(rng.choice(n - 1 - pairs, pairs, replace=False)) + np.arange(pairs)
    ids[at] = FIRST_KEY + rng.choice(KEYS, pairs, replace=False)
    ids[at + 1] = FIRST_VALUE + rng.integers(0, VALUES, pairs)
    return ids, at


def examples(n: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Whole sequences to learn from: ids (count, n) int64, and of each the positions (count, Q) whose next token is an
    answer. Three eighths of a sequence are questions, as far as there are pairs."""
    questions = min(n // 8, KEYS)
    body = n - 3 * questions
    ids, answers = np.empty((count, n), np.int64), np.tile(body + 1 + 3 * np.arange(questions), (count, 1))
    for row in ids:
        row[:body], at = context(body, rng)
        asked = rng.choice(at, questions)  # the same again at times: who is left must not tell the answer
        row[body::3], row[body + 1 :: 3], row[body + 2 :: 3] = ASK, row[asked], row[asked + 1]
    return ids, answers


@dataclass(frozen=True, slots=True)
class Recall:
    """The task of a model trained by ``diastole train recall``: questions about pairs at begin, middle and end."""

    each: int = 4  # questions about each third
    shows: tuple[str, ...] = ("exact", "logprob", "divergence")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        """Of the corpus only the tokenizer is read.

        Raises:
            UserError: it is another language's.
        """
        if corpus.tokenizer.vocab_size != len(WORDS) or corpus.tokenizer.token(ASK) != WORDS[ASK]:
            raise UserError("the task recall is for models of `diastole train recall`", param="tasks")
        return [self._case(length, np.random.default_rng([seed, i])) for i in range(count)]

    def _case(self, length: int, rng: np.random.Generator) -> Case:
        ids, at = context(length, rng)
        pick = Random(int(rng.integers(2**31)))
        questions = []
        for label, third in zip(_THIRDS, np.array_split(at, 3), strict=True):
            for i in pick.sample(third.tolist(), min(self.each, len(third))):
                questions.append(Question.of([ASK, int(ids[i])], [int(ids[i + 1])], label))
        return Case(tuple(ids.tolist()), tuple(questions))
