"""What the models of ``diastole train lexical-units`` are asked to write, from text that the training put aside.

arithmetic   the answer to a question, behind three others with theirs: right word for word
entries      kind and module of an entry of a dictionary, behind its neighbours: right word for word
code         how source goes on behind the first lines of a function or class: right while Python can read it
"""

from __future__ import annotations

import codeop
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple

import numpy as np

from diastole.text import Tokenizer
from diastole.types import Array, UserError

BEFORE = 3  # questions or entries before the one that is asked about
LINES = 8  # of source that is to go on

Begun = tuple[str, str | None]  # a text's beginning, and the line that is to come; None: whatever can be read


class Task(NamedTuple):
    """A text that is to go on."""

    prompt: list[int]
    begun: str
    answer: str | None

    def right(self, said: str) -> bool:
        """Whether this is how it may go on."""
        if self.answer is not None:
            return said.partition("\n")[0] == self.answer
        text = self.begun + said
        return parses(text[: text.rfind("\n") + 1])  # of the last line nobody knows how it ends


def tasks(kind: str, documents: Sequence[str], reader: Tokenizer, count: int, room: int, rng: Random) -> list[Task]:
    """So many of a kind, or as many as there are.

    Args:
        room: tokens of a beginning, at most.

    Raises:
        UserError: there are none.
    """
    found = [*KINDS[kind](documents)]
    rng.shuffle(found)
    each = ((reader.encode(begun, special=False), begun, answer) for begun, answer in found)
    chosen = [*islice((Task(*task) for task in each if len(task[0]) <= room), count)]
    if not chosen:
        raise UserError(f"the text that the training put aside holds no {kind}: train with more", param="model")
    return chosen


def documents(ids: Array, reader: Tokenizer) -> list[str]:
    """Texts of ids (n,), each of which ends with the token of an end."""
    ends = np.flatnonzero(np.isin(ids, [*reader.eos_ids]))
    return [reader.decode(part.tolist()) for part in np.split(ids, ends + 1)]


def parses(source: str) -> bool:
    """Whether Python can read it, as far as it goes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codeop.compile_command(source, symbol="exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):  # the last two: nested too deep
        return False
    return True


def _arithmetic(texts: Sequence[str]) -> Iterator[Begun]:
    for page in texts:
        lines = page.split("\n")
        if not page.startswith("Question: "):
            continue
        for at in range(2 * BEFORE, len(lines) - 1, 2):
            yield _joined(lines[at - 2 * BEFORE : at + 1], "Answer:"), lines[at + 1].removeprefix("Answer:")


def _entries(texts: Sequence[str]) -> Iterator[Begun]:
    for text in texts:
        lines = text.split("\n")
        if not text.startswith("Entry: "):
            continue
        for at in range(4, len(lines) - 2, 4):  # name, kind, meaning, and an empty line
            yield _joined(lines[max(at - 4 * BEFORE, 0) : at + 1], ""), lines[at + 1]


def _code(texts: Sequence[str]) -> Iterator[Begun]:
    for source in texts:
        if source.startswith(("Question: ", "Entry: ")):
            continue
        lines = source.splitlines(keepends=True)
        for at in (i for i, line in enumerate(lines[:-LINES]) if line.startswith(("def ", "class "))):
            begun = "".join(lines[at : at + LINES])
            if parses(begun):
                yield begun, None


def _joined(lines: Sequence[str], last: str) -> str:
    return "\n".join([*lines, last])


KINDS: dict[str, Callable[[Sequence[str]], Iterator[Begun]]] = {
    "arithmetic": _arithmetic,
    "entries": _entries,
    "code": _code,
}
