"""Drafts beside what acts within the layers: a guess that was wrong leaves no trace in what such a policy keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diastole.engine.service import Service
from diastole.techniques.ngram import Lookup
from diastole.techniques.sink_window import SinkWindow
from diastole.types import Stream, UserError
from diastole.weights.calibration import Calibration, about
from spec.oracle import Oracle
from techniques import owed

USE = "ngram:k=12"
BESIDE = {
    "int8-kv": "int8-kv",
    "sink-window": "sink-window:budget=64,dense_below=100",
    "double-sparsity": "double-sparsity:budget=64,channels=8,dense_below=100",
    "tidaldecode": "tidaldecode:budget=64,layers=2+7,dense_below=100,correct_every=16",
    "loopserve": "loopserve:alpha=0.7,sample_rows=16,block=64,budget=64,reselect_every=6,recent=16,dense_below=100",
    "lserve": "lserve:pattern={heads},sink=64,prefill_local=128,decode_local=64,budget=256,refresh=5",
    "zipcache": "zipcache:slice=64,recompress_every=64,probe_random=0.5",
    "shadowkv": "shadowkv:rank=24,sparse_budget=64,outlier_chunks=2,local_chunks=4",
    "lean-attention": "lean-attention",
}


@pytest.fixture(params=BESIDE)
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    heads = tmp_path / "gates.safetensors"
    gates = np.random.default_rng(3).random((16, 2)).astype(np.float32)
    Calibration({"gates": gates}, about("lserve", owed.facts())).write(heads)
    return BESIDE[request.param].format(heads=heads)


@pytest.fixture
def oracle(beside: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Oracle]:
    made = Oracle(lambda: owed.service(beside), 0.8)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: made.draft(streams, lengths))
    yield made
    assert made.drafted > 20


def test_it_acts(beside: str) -> None:
    if not beside.startswith("lean-attention"):
        owed.acts(beside)


def test_texts_are_the_same(oracle: Oracle, beside: str) -> None:
    plain, of = owed.service(beside), owed.service(USE, beside)
    for seed in range(4):
        tokens = owed.prompt(500 + 97 * seed, seed)
        assert owed.alone(of, tokens, 80) == owed.alone(plain, tokens, 80)
    assert of.meter.counters["spec_decode_num_accepted_tokens"] > 60


def test_layer_by_layer_too(oracle: Oracle, beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owed.layer_by_layer(monkeypatch)
    tokens = owed.prompt(600)
    assert owed.alone(owed.service(USE, beside), tokens, 50) == owed.alone(owed.service(beside), tokens, 50)


def test_company_and_chunks_change_nothing(oracle: Oracle, beside: str) -> None:
    owed.indifferent_to_company(USE, beside, chunks=(64,))


def test_preemption_changes_nothing(oracle: Oracle, beside: str) -> None:
    if beside.startswith("shadowkv"):  # own output takes the pages that sealing saved
        owed.survives_preemption(USE, beside, length=200, most=300)
    else:
        owed.survives_preemption(USE, beside.replace("zipcache:", "zipcache:raw=1,"))


def test_random_life(oracle: Oracle, beside: str) -> None:
    owed.random_life(USE, beside, seed=5, steps=150)


def test_choices_and_controllers_go_together(oracle: Oracle, beside: str) -> None:
    def said(of: Service) -> dict[str, owed.Text]:
        life = owed.Life(of)
        life.ask("it", owed.prompt(700), 40, n=2)
        life.finish()
        life.check(idle=True)
        return life.said

    of = owed.service(USE, "smartspec", beside)
    of.loop.timer = lambda: 0.0  # type: ignore[attr-defined]  # no step is too long
    assert said(of) == said(owed.service(beside))


def test_what_keeps_traces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SinkWindow, "revocable", False)
    with pytest.raises(UserError, match="ngram guesses tokens, and sink-window keeps traces"):
        owed.service(USE, "sink-window")


@pytest.mark.parametrize("store", ["zipcache", "shadowkv"])
def test_who_looks_at_rows_finds_none_there(store: str) -> None:
    with pytest.raises(UserError, match=f"del looks at keys and values .* {store} does not leave them there"):
        owed.service("del", store)


def test_spans_end_drafts() -> None:
    """Nobody guesses beyond where somebody acts on sure tokens."""
    of = owed.service(USE, BESIDE["tidaldecode"])
    (span,) = of.loop.spans
    stream = Stream(None, 0, known=50, own=None, given=30)  # type: ignore[arg-type]
    assert [span(stream) for stream.done in (29, 30, 45)] == [1 << 62, 16, 1]
