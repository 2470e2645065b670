"""What number formats cost: perplexity and first choices on real text, beside the file's own weights in float32."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from diastole import registry
from diastole.assets import resolve
from diastole.assets.models import open_model, tokenizer_of
from diastole.kernels.table import Ops, load
from diastole.loops.ar import AutoRegressive
from diastole.nn.decoder import Decoder
from diastole.nn.inside import NOBODY, Inside
from diastole.nn.linear import Loader, WeightFormat
from diastole.params import SamplingParams
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE, PagePool
from diastole.types import Array, Grant, KVFormat, Request, UserError

SPAN = 512  # tokens that are read on their own
# Modules of the standard library with long documentation: English that is on every machine.
_MODULES = (
    "argparse", "collections", "typing", "statistics", "difflib", "decimal", "datetime", "random", "pathlib", "json",
    "csv", "unittest", "unittest.mock", "logging", "threading", "subprocess", "socket", "email.message", "re", "os",
    "tempfile", "shutil", "asyncio", "heapq", "itertools", "functools", "string", "textwrap", "zipfile", "tarfile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """Formats to judge."""

    weights: WeightFormat
    kv: KVFormat


REFERENCE = Setting("f32", "f32")
SETTINGS = (Setting("auto", "bf16"), Setting("auto", "int8"), Setting("compact", "bf16"))


@dataclass(frozen=True, slots=True)
class Judged:
    """A setting on all positions: ``ratio`` of its perplexity to the reference's, ``equal`` share of equal first
    choices, ``divergence`` of its distributions from the reference's (Kullback-Leibler, nats per token)."""

    setting: Setting
    perplexity: float
    ratio: float
    equal: float
    divergence: float


def standard_text() -> str:
    """Documentation strings of Python's standard library."""
    parts = []
    for name in _MODULES:
        module = import_module(name)
        objects = [x for _, x in sorted(vars(module).items()) if getattr(x, "__module__", None) == module.__name__]
        parts += [inspect.getdoc(x) or "" for x in (module, *objects)]
    return "\n\n".join(p for p in parts if p)


def judge(
    model: str, threads: int, kernels: str, text: str, tokens: int, tell: Callable[[int, int], None]
) -> list[Judged]:
    """The reference and all settings on the first ``tokens`` tokens of a text, in stretches of 512.

    Args:
        tell: is told how many stretches are done, and of how many.

    Raises:
        UserError: the text is too short, or the model cannot be loaded.
    """
    path = resolve(model)
    ids = np.array(tokenizer_of(path).encode(text, special=False), np.int32)
    spans = tokens // SPAN
    if spans < 1 or len(ids) < spans * SPAN:
        raise UserError(
            f"the text has {len(ids)} tokens: ask for at least {SPAN} and at most so many, or give a longer one",
            param="tokens",
        )
    ops = load(threads or None, kernels)
    sums = {s: np.zeros(3) for s in (REFERENCE, *SETTINGS)}  # of log probabilities, equal first choices, divergence
    models = {weights: built(path, weights, ops, 2 * SPAN) for weights in {s.weights for s in sums}}
    for i, span in enumerate(ids[: spans * SPAN].reshape(spans, SPAN)):
        exact = log_softmax(logits_of(models[REFERENCE.weights], ops, span, REFERENCE.kv))
        for s in sums:
            own = exact if s == REFERENCE else log_softmax(logits_of(models[s.weights], ops, span, s.kv))
            sums[s] += (
                own[np.arange(SPAN - 1), span[1:]].sum(),
                (own.argmax(-1) == exact.argmax(-1)).sum(),
                (np.exp(exact) * (exact - own)).sum(),
            )
        tell(i + 1, spans)
    n = spans * SPAN
    found = {s: float(np.exp(-total[0] / (n - spans))) for s, total in sums.items()}
    return [
        Judged(s, found[s], found[s] / found[REFERENCE], float(total[1] / n), float(total[2] / n))
        for s, total in sums.items()
    ]


def built(path: Path, weights: WeightFormat, ops: Ops, context: int = 0) -> Decoder:
    """A model without an engine; ``context`` > 0 shortens its own."""
    checkpoint = open_model(path)
    try:
        architecture = registry.model(str(checkpoint.config.get("model_type")))
        decoder: Decoder = architecture.build(Loader(ops, checkpoint, weights), checkpoint.config, context)
        return decoder
    finally:
        checkpoint.close()


def logits_of(
    model: Decoder,
    ops: Ops,
    ids: Array,
    kv: KVFormat = "f32",
    chunks: tuple[int, ...] = (),
    fused: bool = True,
    inside: Inside = NOBODY,
) -> Array:
    """Logits of every position without an engine: ids (n,) int32 -> (n, V); block by block if not ``fused``."""
    store = PagedKV(kv)
    pages = -(-len(ids) // PAGE)
    store.alloc(model.state_specs()["kv"], pages, ops)
    loop = AutoRegressive(PagePool(pages, store), len(ids) + 1, model.vocab, frozenset(), "")
    stream = loop.open(Request("r", "lm", ids, SamplingParams(max_tokens=1)))
    loop.admit(stream)

    def parts() -> Iterator[Array]:
        for n in chunks or (len(ids),):
            batch = replace(loop.prepare([Grant(stream, n)]), want=np.arange(n, dtype=np.int32))
            state = {"kv": store, "inside": inside}
            logits = model.forward(batch, state) if fused else model.open_forward(batch, store, inside)
            yield logits.copy()  # the next call reuses it
            stream.done += n

    return np.concatenate(list(parts()))


def log_softmax(logits: Array) -> Array:
    """Of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def perplexity(logits: Array, ids: Array) -> float:
    """Of ids[1:], each predicted from those before it: logits (n, V), ids (n,)."""
    picked: Array = log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp(-picked.mean()))
