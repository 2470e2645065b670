"""The tokenizer that lies with a model's weights."""

from __future__ import annotations

from pathlib import Path

from diastole.text import Tokenizer
from diastole.weights import GGUF


def difference(one: Path, other: Path) -> str:
    """In what way the second model's tokens are others than the first's; empty: in none, as far as both have any."""
    a, b = tokenizer_of(one), tokenizer_of(other)
    for id in range(min(a.vocab_size, b.vocab_size)):
        if a.token(id) != b.token(id):
            return f"{id} is {b.token(id)!r} there and {a.token(id)!r} here"
    return ""


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer that belongs to a model: beside it in a directory, or inside a GGUF file."""
    if path.is_dir():
        return Tokenizer.from_directory(path)
    with GGUF.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)
