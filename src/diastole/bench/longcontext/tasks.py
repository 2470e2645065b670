"""The suite's tasks: each makes cases of a length from a seed, and says which of the marks tell about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from diastole.bench.longcontext.case import Case, Question
from diastole.bench.longcontext.recall import Recall
from diastole.bench.longtext import Corpus

DEPTHS = (0.1, 0.35, 0.6, 0.85)  # of a context, where a thing to be remembered lies
_PLACES = (
    "Marlow", "Hadley", "Ripton", "Selby", "Corwen", "Thirsk", "Oakham", "Whitby", "Ludlow", "Keswick",
    "Buxton", "Frome",
)  # fmt: skip
_KINDS = ("secret number", "door code", "flight number", "account number")  # alike ones are confused with each other
_WORDS = (
    "apple", "river", "stone", "cloud", "tiger", "candle", "window", "garden", "silver", "bridge", "castle", "dragon",
    "eagle", "forest", "guitar", "hammer", "island", "jacket", "kettle", "ladder", "mirror", "needle", "orange",
    "pencil", "rabbit", "saddle", "temple", "violin", "wagon", "yellow", "anchor", "basket",
)  # fmt: skip


class Task(Protocol):
    """Something that a model may still know of a long context."""

    @property
    def shows(self) -> tuple[str, ...]:
        """The marks that tell about it, the most telling first."""
        ...

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        """``count`` cases whose contexts have ``length`` tokens; the same for the same seed.

        Raises:
            UserError: the corpus has fewer tokens.
        """
        ...


@dataclass(frozen=True, slots=True)
class Continuation:
    """Perplexity: how well the text after the context is predicted, and how far from dense attention's prediction."""

    tokens: int = 64
    shows: tuple[str, ...] = ("perplexity", "divergence", "equal")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        rng = Random(f"continuation {seed}")
        made = []
        for _ in range(count):
            ids = corpus.cut(length + 1 + self.tokens, rng)
            given, answer = ids[length : length + 1], ids[length + 1 :]
            made.append(Case(tuple(ids[:length]), (Question.of(given, answer),)))
        return made


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many tokens of greedy text are dense attention's own, when each is judged after dense attention's text."""

    tokens: int = 256
    shows: tuple[str, ...] = ("agreed", "equal", "divergence")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        rng = Random(f"agreement {seed}")
        made = []
        for _ in range(count):
            ids = corpus.cut(length + 1, rng)
            made.append(Case(tuple(ids[:-1]), (Question((ids[-1],), (), self.tokens),)))
        return made


@dataclass(frozen=True, slots=True)
class Needle:
    """Made-up sentences in real prose, one at each depth, asked for at the end in the words that they were told in."""

    depths: tuple[float, ...] = DEPTHS
    shows: tuple[str, ...] = ("exact", "logprob", "rank", "divergence")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        rng = Random(f"needle {seed}")
        made = []
        for _ in range(count):
            places = rng.sample(_PLACES, len(self.depths))
            numbers = rng.sample(range(10_000, 100_000), len(self.depths))
            told, asked = [], []
            for i, (place, number, depth) in enumerate(zip(places, numbers, self.depths, strict=True)):
                what = f"{_KINDS[i % len(_KINDS)]} of {place}"
                told.append(corpus.encode(f"\n\nThe {what} is {number}. Remember it.\n\n"))
                given = corpus.encode(f"\n\nQuestion: What is the {what}?\nAnswer: The {what} is")
                asked.append(Question.of(given, corpus.encode(f" {number}"), f"depth {depth:.0%}"))
            prose = corpus.cut(length - sum(map(len, told)), rng)
            made.append(Case(tuple(_laid(prose, told, self.depths)), tuple(asked)))
        return made


@dataclass(frozen=True, slots=True)
class Pairs:
    """Key-value retrieval: lines of names and numbers, a block of them at each depth in prose; of each block one is
    asked for, by a new line that begins like it."""

    lines: int = 8  # in all; of more the embedded model confuses too many, with dense attention too
    depths: tuple[float, ...] = DEPTHS
    shows: tuple[str, ...] = ("exact", "logprob", "rank", "divergence")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        rng = Random(f"pairs {seed}")
        return [self._case(corpus, length, rng) for _ in range(count)]

    def _case(self, corpus: Corpus, length: int, rng: Random) -> Case:
        keys, values = rng.sample(_WORDS, self.lines), rng.sample(range(1_000, 10_000), self.lines)
        told = [corpus.encode(f'"{k}": {v},\n') for k, v in zip(keys, values, strict=True)]
        each = self.lines // len(self.depths)
        blocks, asked = [], []
        for i, depth in enumerate(self.depths):
            block = told[i * each : (i + 1) * each]
            blocks.append(sum(block, corpus.encode("\n\n")) + corpus.encode("\n"))
            at = i * each + rng.randrange(each)
            given, answer = corpus.encode(f'\n\n"{keys[at]}":'), corpus.encode(f" {values[at]}")
            asked.append(Question.of(given, answer, f"depth {depth:.0%}"))
        prose = corpus.cut(length - sum(map(len, blocks)), rng)
        return Case(tuple(_laid(prose, blocks, self.depths)), tuple(asked))


@dataclass(frozen=True, slots=True)
class Copying:
    """Strings of random tokens, one at each depth, whose beginning is repeated at the end: how they go on."""

    given: int = 8
    tokens: int = 24
    depths: tuple[float, ...] = DEPTHS
    shows: tuple[str, ...] = ("right", "logprob", "divergence")

    def cases(self, corpus: Corpus, length: int, count: int, seed: int) -> list[Case]:
        rng = Random(f"copying {seed}")
        usual = sorted(set(corpus.ids))  # tokens that the model has certainly learnt
        made = []
        for _ in range(count):
            strings = [rng.sample(usual, self.given + self.tokens) for _ in self.depths]
            prose = corpus.cut(length - sum(map(len, strings)), rng)
            asked = [
                Question.of(s[: self.given], s[self.given :], f"depth {d:.0%}")
                for s, d in zip(strings, self.depths, strict=True)
            ]
            made.append(Case(tuple(_laid(prose, strings, self.depths)), tuple(asked)))
        return made


def _laid(prose: list[int], parts: list[list[int]], depths: tuple[float, ...]) -> list[int]:
    """The parts in the prose, each after a share of it; depths rise."""
    laid: list[int] = []
    before = 0
    for part, depth in zip(parts, depths, strict=True):
        at = int(depth * len(prose))
        laid += prose[before:at] + part
        before = at
    return laid + prose[before:]


TASKS: Mapping[str, Task] = {  # on real text
    "perplexity": Continuation(),
    "needle": Needle(),
    "pairs": Pairs(),
    "copying": Copying(),
    "agreement": Agreement(),
}
ALL: Mapping[str, Task] = {**TASKS, "recall": Recall()}  # recall: in a language that only its own model reads
