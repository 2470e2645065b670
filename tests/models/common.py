"""What the model tests share: the embedded model, real text, and running a model without an engine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from diastole.assets import resolve
from diastole.text import Tokenizer
from diastole.types import Array, UserError
from diastole.weights import GGUF

ASSET = "smollm2-135m"


def embedded() -> Path:
    """The embedded model's file; the test is skipped with its name if it was not pulled."""
    try:
        return resolve(ASSET)
    except UserError:
        pytest.skip(f"asset {ASSET} is not here: diastole pull {ASSET}")


@cache
def tokenizer() -> Tokenizer:
    with GGUF.open(embedded()) as file:
        return Tokenizer.from_gguf(file.metadata)


@cache
def real_text(tokens: int) -> Array:
    """The beginning of the licence of Diastole and of Python's own documentation strings: ids (tokens,) int32."""
    import argparse
    import collections
    import inspect
    import typing

    root = Path(__file__).resolve().parents[2]
    parts = [(root / "LICENSE").read_text()]
    for module in (argparse, collections, typing):
        parts += [inspect.getdoc(x) or "" for _, x in sorted(vars(module).items()) if inspect.getdoc(x)]
    ids = tokenizer().encode("\n\n".join(parts), special=False)
    assert len(ids) >= tokens, f"only {len(ids)} tokens of text are here"
    return np.array(ids[:tokens], np.int32)
