"""What the model tests share: the embedded model, real text, and running a model without an engine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.assets import resolve
from diastole.kernels.table import Ops
from diastole.loops.ar import AutoRegressive
from diastole.nn.decoder import Decoder
from diastole.params import SamplingParams
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE, PagePool
from diastole.text import Tokenizer
from diastole.types import Array, Grant, KVFormat, Request, UserError
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


def logits_of(
    model: Decoder, ops: Ops, ids: Array, kv: KVFormat = "f32", chunks: tuple[int, ...] = (), fused: bool = True
) -> Array:
    """Logits of every position: (n, V); block by block if not ``fused``."""
    store = PagedKV(kv)
    pages = -(-len(ids) // PAGE)
    store.alloc(model.state_specs()["kv"], pages, ops)
    loop = AutoRegressive(PagePool(pages, store), len(ids) + 1, model.vocab, frozenset(), "test")
    stream = loop.open(Request("r", "lm", ids, SamplingParams(max_tokens=1)))
    assert loop.admit(stream)
    out = []
    for n in chunks or (len(ids),):
        batch = loop.prepare([Grant(stream, n)])
        batch = replace(batch, want=np.arange(n, dtype=np.int32))
        logits = model.forward(batch, {"kv": store}) if fused else model.open_forward(batch, store)
        out.append(logits.copy())  # the next call reuses it
        stream.done += n
    return np.concatenate(out)


def log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def perplexity(logits: Array, ids: Array) -> float:
    """Of ids[1:], each predicted from those before it."""
    picked: Any = log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp(-picked.mean()))
