"""Predictable text that is on every machine, for models that are to foresee.

Source of the standard library, a dictionary made of its documentation strings, and arithmetic in fixed phrases; and a
vocabulary with a placeholder, learnt from it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from diastole.bench.workloads import HELD_OUT
from diastole.types import UserError

END, PLACEHOLDER = "<|endoftext|>", "<|unit|>"  # the first and the last id
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip", "encodings",
            "pydoc_data", "turtledemo"}  # fmt: skip


class Folds(NamedTuple):
    """Documents: to train on, to mark and tune on, and to judge by."""

    train: list[str]
    held: list[str]
    test: list[str]


def texts(seed: int, library: int, pages: int) -> Folds:
    """All documents, in an order that the seed decides. Modules on which drafters are judged are in ``test`` only.

    Args:
        library: characters of the standard library that are read, at most.
        pages: of arithmetic, of ten problems each.
    """
    rng = Random(seed)
    folds = Folds([], [], [])
    left = library
    files = list(_library())
    rng.shuffle(files)
    for name, path in files:
        if path.stat().st_size > left:
            continue
        source = path.read_text("utf-8", "replace")
        left -= len(source)
        for document in filter(None, (source, dictionary(name, source))):
            chance = rng.random()
            judged = name.partition(".")[0] in HELD_OUT or chance < 0.05
            fold = folds.test if judged else folds.held if chance < 0.35 else folds.train
            fold.append(document)
    for i in range(pages):
        page = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in (problem(rng) for _ in range(10)))
        (folds.test if i % 20 == 0 else folds.held if i % 20 < 7 else folds.train).append(page)
    for fold in folds:
        rng.shuffle(fold)
    return folds


def _library() -> Iterator[tuple[str, Path]]:
    """Modules of the standard library that are written in Python: name and file."""
    top = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(top.rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        if not _SKIPPED & set(parts):
            yield ".".join(parts), path


def dictionary(module: str, source: str) -> str:
    """An entry for every class and function with a documentation string: its name, kind, and first sentence."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a file that shows how not to write
        return ""
    entries = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            meaning = " ".join(doc.partition("\n\n")[0].split())
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            entries.append(f"Entry: {node.name}\nKind: {kind} of the module {module}\nMeaning: {meaning}\n")
    return "\n".join(entries)


def problem(rng: Random) -> tuple[str, str]:
    """A question of arithmetic, and its answer."""
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    a, b = max(a, b), min(a, b)
    who, what = rng.choice(("Ada", "Ben", "Clara", "David")), rng.choice(("apples", "books", "coins", "stamps"))
    questions = (
        (f"What is {a} plus {b}?", f"{a} plus {b} is equal to {a + b}."),
        (f"What is {a} minus {b}?", f"{a} minus {b} is equal to {a - b}."),
        (f"What comes after {a}?", f"The number that comes after {a} is {a + 1}."),
        (f"Which is larger, {b} or {a}?", f"The larger of the two numbers is {a}."),
        (
            f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have now?",
            f"{who} had {a} {what} and got {b} more, so now {who} has {a} + {b} = {a + b} {what}.",
        ),
    )
    return rng.choice(questions)


def vocabulary(documents: Sequence[str], size: int) -> Any:
    """A byte-level BPE tokenizer of ``size`` ids learnt from documents; the last one is the placeholder's.

    Raises:
        UserError: the documents are too short for so many.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([digits, words]), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    backend.add_special_tokens([PLACEHOLDER])
    if backend.get_vocab_size() != size:
        raise UserError(f"the text is too short for a vocabulary of {size} ids", param="library")
    return backend
