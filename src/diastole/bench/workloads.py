"""Requests by kind of work: what drafts are good for depends on how much of an answer stands in its prompt.

copy       repeat a passage of documentation, whose first words are given
edit       print a function of the standard library again with a name changed; its first lines are given
summary    Spec-Bench's summaries
rag        Spec-Bench's questions about passages
chat       Spec-Bench's open conversation: writing, roleplay, reasoning, humanities, stem, extraction, coding, qa
math       Spec-Bench's word problems
translate  Spec-Bench's translations
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import NamedTuple

from diastole.bench.longtext import Corpus
from diastole.frontend.voice import Voice
from diastole.text import Tokenizer
from diastole.types import UserError

DATA = Path("../shared/data")
QUESTIONS = "spec_bench_questions.jsonl"
LARGEST = 64 << 20  # bytes of that file
_CATEGORIES = {
    "summary": ("summarization",),
    "rag": ("rag",),
    "chat": ("writing", "roleplay", "reasoning", "humanities", "stem", "extraction", "coding", "qa"),
    "math": ("math", "math_reasoning"),
    "translate": ("translation",),
}
KINDS = ("copy", "edit", "code", *_CATEGORIES)
HELD_OUT = ("argparse", "calendar", "difflib", "inspect", "mailbox", "statistics", "tarfile", "zipfile")  # of code
_MODULES = ("argparse", "ast", "calendar", "csv", "datetime", "difflib", "fractions", "heapq", "inspect", "textwrap")


class Asked(NamedTuple):
    """A request, and how its answer begins: a small model that is told to copy would rather talk about the text. With
    no request the beginning is all there is, and no chat around it."""

    request: str
    begun: str = ""

    def ids(self, voice: Voice) -> list[int]:
        """As the model reads it."""
        begun = voice.tokenizer.encode(self.begun, special=False) if self.begun else []
        return [*voice.chat([{"role": "user", "content": self.request}], None, {}), *begun] if self.request else begun


def requests(kind: str, count: int, tokenizer: Tokenizer, data: Path = DATA, seed: int = 0) -> list[Asked]:
    """``count`` requests of a kind, the same for the same seed.

    Raises:
        UserError: there is no such kind, or its file is not there.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of work {kind!r:.40}; there are {', '.join(KINDS)}", param="workloads")
    rng = Random(seed)
    if kind == "copy":
        corpus = Corpus.of(tokenizer)
        return [_copy(tokenizer.decode(corpus.cut(220, rng)).strip()) for _ in range(count)]
    if kind == "edit":
        return [_edit(*f) for f in rng.sample(sorted(_functions()), count)]
    if kind == "code":
        return [Asked("", text) for text in rng.sample(sorted(_beginnings()), count)]
    asked = spec_bench(data, _CATEGORIES[kind])
    return [Asked(r) for r in rng.sample(asked, min(count, len(asked)))]


def spec_bench(data: Path, categories: Sequence[str] = ()) -> list[str]:
    """First turns of Spec-Bench's questions in the order of the file, of these categories or of all.

    Raises:
        UserError: the file is not there or holds something else.
    """
    path = data / QUESTIONS
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than Spec-Bench", param="data")
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        return [str(r["turns"][0]) for r in rows if not categories or r["category"] in categories]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise UserError(
            f"Spec-Bench's questions cannot be read from {path}: {e}; name their folder with --data", param="data"
        ) from None


def _functions() -> Iterator[tuple[str, str]]:
    """Functions of a few dozen lines with the name of an argument that they use more than twice."""
    for module in _MODULES:
        source = inspect.getsource(import_module(module))
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            text = ast.get_source_segment(source, node) or ""
            names = [a.arg for a in node.args.args if text.count(a.arg) > 2 and len(a.arg) > 2]
            if 500 < len(text) < 1600 and names:
                yield text, names[0]


def _beginnings() -> Iterator[str]:
    """Stretches of source that end with a line."""
    for module in HELD_OUT:
        lines = inspect.getsource(import_module(module)).splitlines(keepends=True)
        for at in range(0, len(lines) - 40, 25):
            yield "".join(lines[at : at + 25])


def _copy(text: str) -> Asked:
    first = " ".join(text.split(" ")[:12])
    return Asked(f"Repeat the following text word for word:\n\n{text}", first)


def _edit(text: str, name: str) -> Asked:
    request = f"Print this function again with the variable `{name}` renamed to `{name}_new`:\n\n```python\n{text}\n```"
    first = re.sub(rf"\b{name}\b", f"{name}_new", "\n".join(text.split("\n")[:4]))
    return Asked(request, f"```python\n{first}")
