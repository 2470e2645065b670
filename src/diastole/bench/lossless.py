"""Whose texts are the plain engine's, token by token: every drafter with every controller, alone and in a crowd.

The plain texts are said one at a time, by an engine that drafts nothing. An engine with drafts is given all requests at
once and runs so many together, so that in a crowd streams come and go in the middle of others' rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from diastole.bench.workloads import DATA, spec_bench
from diastole.params import SamplingParams

CONTROLLERS = ("fixed:k=4", "smartspec")
Ids = Sequence[int]


def combinations(small: str = "") -> list[list[str]]:
    """All drafters of any model, each with each controller, and what is found for whoever names none.

    Args:
        small: a model with the same tokens, for the classical drafter; none: without that.
    """
    drafters = ["ngram", "aded", "longspec", "hidden-transfer", "del"]
    drafters += [f"draft-model:model={small}"] if small else []
    found = [[drafter, controller] for drafter in drafters for controller in CONTROLLERS]
    return [*found, ["longspec", "specdec-pp"], ["auto"]]  # that controller's head belongs to its drafter


def questions(count: int, data: Path = DATA) -> list[str]:
    """So many of Spec-Bench's, evenly from all of its categories.

    Raises:
        UserError: the file is not there or holds something else.
    """
    asked = spec_bench(data)
    count = min(count, len(asked))
    return [asked[i * len(asked) // count] for i in range(count)]


class Speaking(Protocol):
    """A language model in this process: ``diastole.LLM``."""

    def generate_each(self, wishes: Sequence[tuple[Any, SamplingParams]]) -> Sequence[Any]: ...

    def counters(self) -> Mapping[str, int]: ...


class Told(NamedTuple):
    """A combination whose texts were compared, or that was refused."""

    use: str
    streams: int
    texts: int
    different: Sequence[int]  # which of them are not the plain engine's
    tokens: int
    drafted: int
    kept: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Plain:
    """What is to be said."""

    prompts: Sequence[Ids]
    params: Sequence[SamplingParams]
    texts: Sequence[Ids]

    @classmethod
    def of(
        cls, llm: Speaking, prompts: Sequence[Ids], params: Sequence[SamplingParams], tell: Callable[[], None]
    ) -> Plain:
        """tell: hears of every text."""
        texts: list[Ids] = []
        for prompt, one in zip(prompts, params, strict=True):
            texts.append(llm.generate_each([(prompt, one)])[0].ids)
            tell()
        return cls(prompts, params, texts)

    def beside(self, llm: Speaking, use: str, streams: int) -> Told:
        """The same requests to an engine with drafts, which runs ``streams`` of them together."""
        before = dict(llm.counters())
        said = [c.ids for c in llm.generate_each(list(zip(self.prompts, self.params, strict=True)))]
        gone = {name: n - before.get(name, 0) for name, n in llm.counters().items()}
        return Told(
            use,
            streams,
            len(said),
            [i for i, (a, b) in enumerate(zip(said, self.texts, strict=True)) if list(a) != list(b)],
            sum(map(len, said)),
            gone.get("spec_decode_num_draft_tokens", 0),
            gone.get("spec_decode_num_accepted_tokens", 0),
        )
