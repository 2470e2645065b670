"""Vectors of prompts from real models: the plain mean of transformers' hidden states, and the same bits however the
engine comes to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from diastole.clock import RealClock
from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.kernels.ref import TorchOps
from diastole.kernels.table import Ops, load
from diastole.llm import LLM
from diastole.loops.pooling import unit
from diastole.nn.linear import Loader
from diastole.params import PoolParams, SamplingParams
from diastole.types import Array, Event, Request
from diastole.weights import open_checkpoint
from engine.toy import assert_clean, run
from models.common import embedded
from models.test_families import IDS, directory

CROWD = [IDS[i : i + n] for i, n in ((0, 1), (3, 17), (20, 64), (0, 65), (9, 130))]
SPEAKERS = [IDS[:70], IDS[5:9], IDS[40:140]]


@contextmanager
def engine(path: Path, ops: Ops, fmt: Any = "f32", kv: str = "f32", **settings: Any) -> Iterator[Engine]:
    checkpoint = open_checkpoint(path)
    config = ServiceConfig(kv=kv, **settings)
    service = assemble("lm", Loader(ops, checkpoint, fmt), config, frozenset(), 1 << 24, 0)
    yield Engine([service], RealClock(), LeastSlack())
    assert_clean(service)


def read(engine: Engine, id: str, prompt: Array, kind: Any = "mean") -> None:
    engine.add(Request(id, "lm", prompt, PoolParams(kind)))


def speak(engine: Engine, id: str, prompt: Array) -> None:
    engine.add(Request(id, "lm", prompt, SamplingParams(max_tokens=12, seed=3, logprobs=2)))


def vectors(events: Sequence[Event]) -> list[Array]:
    got = {e.id: e.data.vector for e in events if e.id.startswith("e")}
    return [got[id] for id in sorted(got)]


def said(events: Sequence[Event]) -> list[tuple[str, Any]]:
    """Tokens with their log probabilities, by request."""
    return sorted(((e.id, e.data.chosen) for e in events if e.id.startswith("t")), key=lambda e: e[0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_they_are_the_mean_of_transformers_hidden_states(tmp_path: Path, family: str) -> None:
    path, _ = directory(tmp_path, family)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").float().eval()
    with torch.no_grad():
        hidden = model.model(torch.from_numpy(IDS[None].astype(np.int64))).last_hidden_state[0].double().numpy()
    for ops in (load(), TorchOps()):
        for kind, want in (("mean", hidden.mean(0)), ("last", hidden[-1])):
            with engine(path, ops, step_tokens=40) as e:
                read(e, "e", IDS, kind)
                (got,) = vectors(run(e))
            np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=3e-6)
            assert abs(float(np.linalg.norm(got.astype(np.float64))) - 1) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(("fmt", "kv"), [("f32", "f32"), ("q4", "bf16"), ("q8", "int8")])
def test_company_chunks_and_the_cache_change_no_bit(tmp_path: Path, family: str, fmt: str, kv: str) -> None:
    """Of vectors, and of the texts that share batches with them: these leave fused execution while somebody reads."""
    path, _ = directory(tmp_path, family)
    ops = load()
    if ops.fuse() is None:
        pytest.skip("the native operators are not built")
    start = partial(engine, path, ops, fmt, kv)
    alone, texts = [], []
    for i, prompt in enumerate(CROWD):
        with start(prefix_cache=False) as e:
            read(e, f"e{i}", prompt)
            alone += vectors(run(e))
    for i, prompt in enumerate(SPEAKERS):
        with start(prefix_cache=False) as e:
            speak(e, f"t{i}", prompt)
            texts += said(run(e))
    for step in (1, 7, 64, 512):
        with start(step_tokens=step) as e:
            for _ in range(2):  # the second time, what the speakers left is in the cache
                for i, prompt in enumerate(CROWD):
                    read(e, f"e{i}", prompt)
                for i, prompt in enumerate(SPEAKERS):
                    speak(e, f"t{i}", prompt)
                events = run(e)
                for got, want in zip(vectors(events), alone, strict=True):
                    np.testing.assert_array_equal(got, want)
                assert said(events) == texts
            assert e.services[0].meter.counters["prefix_cache_hits"] > 0


def test_leaving_at_any_step_gives_all_pages_back(tmp_path: Path) -> None:
    path, _ = directory(tmp_path, "llama")
    with engine(path, load(), step_tokens=8) as e:
        pool = e.services[0].ledger.pools["kv"]
        read(e, "e-stays", IDS[:30])
        (want,) = vectors(run(e))
        aborted = 0
        for steps in range(24):
            read(e, "goes", IDS)
            read(e, "e-stays", IDS[:30])
            events = [event for _ in range(steps) for event in e.step() or ()]
            aborted += e.abort("goes")
            assert_clean(e.services[0])
            (got,) = vectors(events + run(e))
            np.testing.assert_array_equal(got, want)
            assert pool.used == 0  # type: ignore[attr-defined]
        assert 15 < aborted < 24  # at its last steps it had ended by itself


def test_zeros_stay_zeros() -> None:
    np.testing.assert_array_equal(unit(np.zeros(3)), np.zeros(3, np.float32))


RELATED = [
    ("The cat sleeps on the warm sofa.", "A kitten is napping on the couch."),
    ("Stock prices fell sharply on Monday.", "The market lost value at the start of the week."),
    ("He fixed the engine of the old car.", "The mechanic repaired the vehicle's motor."),
    ("Heavy rain flooded the streets.", "The storm left the roads under water."),
    ("She plays the violin in an orchestra.", "The musician performs classical music on stage."),
]


@pytest.mark.model
@pytest.mark.slow
def test_related_sentences_are_closer_with_the_embedded_model() -> None:
    embedded()
    with LLM() as llm:
        got = llm.embed([s for pair in RELATED for s in pair])
        assert got.shape == (10, llm.width)
        np.testing.assert_array_equal(llm.embed([RELATED[2][1]])[0], got[5])
    likeness = got[0::2] @ got[1::2].T  # (first sentences, second sentences)
    related = np.diag(likeness)
    for i in range(len(RELATED)):
        others = np.delete(likeness[i], i)
        assert related[i] > others.mean() + 0.05
    assert (likeness.argmax(1) == np.arange(len(RELATED))).all()
