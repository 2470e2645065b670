"""Opening a model by what its place holds: a checkpoint, or an adapter over one that is found by its name."""

from __future__ import annotations

from pathlib import Path

from diastole.assets.pull import resolve
from diastole.nn import tokens
from diastole.text import Tokenizer
from diastole.types import UserError
from diastole.weights import Checkpoint, open_checkpoint
from diastole.weights.adapter import AdaptedCheckpoint, base_of, is_adapter
from diastole.weights.error import WeightsError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def open_model(path: Path) -> Checkpoint:
    """A GGUF file, a Hugging Face directory, or the directory of an adapter, opened over the model that it names.

    Raises:
        WeightsError: it is none of these, or damaged.
        UserError: an adapter's base model is not there.
    """
    if not is_adapter(path):
        return open_checkpoint(path)
    base = open_checkpoint(_base(path))
    try:
        return AdaptedCheckpoint(path, base)
    except BaseException:
        base.close()
        raise


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer that belongs to a model; an adapter that brings none uses its base's."""
    own = any((path / name).exists() for name in _TOKENIZERS)
    return tokens.tokenizer_of(_base(path) if is_adapter(path) and not own else path)


def _base(path: Path) -> Path:
    """Where the model lies that an adapter changes."""
    named = base_of(path)
    try:
        found = resolve(named)
    except UserError as e:
        raise UserError(f"{path.name} changes the model {named!r:.200}: {e}", param="model", code=e.code) from None
    if is_adapter(found):
        raise WeightsError(path, f"changes {named!r:.200}, which is an adapter itself; merge the two first")
    return found
