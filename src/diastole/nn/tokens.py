"""The tokenizer that lies with a model's weights."""

from __future__ import annotations

from pathlib import Path

from diastole.text import Tokenizer
from diastole.weights import GGUF


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer that belongs to a model: beside it in a directory, or inside a GGUF file."""
    if path.is_dir():
        return Tokenizer.from_directory(path)
    with GGUF.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)
