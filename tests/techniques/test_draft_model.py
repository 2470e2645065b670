"""A smaller model guesses: what it guesses changes how fast a text comes, never the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diastole.bench.tiny import Remembered, TinyLlama
from diastole.kernels.table import load
from diastole.llm import LLM
from diastole.models import llama
from diastole.nn import tokens
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Loader
from diastole.params import SamplingParams
from diastole.state.pages import PAGE
from diastole.techniques import draft_model as technique
from diastole.types import Request, UserError
from models.common import embedded
from spec.oracle import answers
from techniques import owed

USE = "draft-model:model=twin,k=4"
STRANGER = "draft-model:model=stranger,k=4"
CONTEXTS = {"short": 160}


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of files: "twin" is the model that verifies, "stranger" another, "short" the first with less context,
    "wide" and "narrow" have more and fewer tokens."""

    def opened(p: technique.Params, facts: Any) -> Decoder:
        sizes = {"wide": owed.VOCAB + 32, "narrow": owed.VOCAB - 32}
        tiny = TinyLlama(seed=p.model == "stranger", vocab_size=sizes.get(p.model, owed.VOCAB))
        context = CONTEXTS.get(p.model, owed.CONTEXT)
        return llama.build(Loader(load(1), tiny, "auto", Remembered()), tiny.config, context)  # type: ignore[arg-type]

    monkeypatch.setattr(technique, "opened", opened)


def accepted(of: owed.Service) -> float:
    """Share of its guesses."""
    counted = of.meter.counters
    drafted = counted["spec_decode_num_draft_tokens"]
    return counted["spec_decode_num_accepted_tokens"] / drafted if drafted else 0.0


# ---- what is owed


@pytest.mark.parametrize("use", [USE, STRANGER])
def test_the_text_is_the_same(use: str) -> None:
    owed.same_as_plain(use)


@pytest.mark.parametrize("use", [USE, STRANGER])
def test_company_and_chunks_change_nothing(use: str) -> None:
    owed.indifferent_to_company(use)


@pytest.mark.parametrize("use", [USE, STRANGER])
def test_preemption_changes_nothing(use: str) -> None:
    owed.survives_preemption(use)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("use", [USE, STRANGER, f"{STRANGER},room=1"])
def test_random_life(use: str) -> None:
    owed.random_life(use, seed=4)


@pytest.mark.parametrize("pace", ["fixed:k=2", "smartspec"])
def test_with_controllers(pace: str) -> None:
    owed.indifferent_to_company(USE, pace)


@pytest.mark.parametrize("beside", ["int8-kv", "double-sparsity:budget=64,channels=8,dense_below=100", "zipcache"])
def test_beside_what_acts_within_the_layers(beside: str) -> None:
    plain, of = owed.service(beside), owed.service(USE, beside)
    tokens = owed.prompt(600)
    assert owed.alone(of, tokens, 30) == owed.alone(plain, tokens, 30)


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.3, "top_k": 20, "n": 3},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0.9, "logit_bias": {5: 3.0, 9: -100.0}},
    ],
    ids=str,
)
def test_with_all_that_a_request_may_ask_for(wish: dict[str, Any]) -> None:
    for seed in range(3):
        params = SamplingParams(**{"max_tokens": 40, "seed": seed, "logprobs": 2, **wish})
        request = Request("r", "tiny", tuple(owed.prompt(150, seed)), params)
        assert answers(owed.service(STRANGER), request) == answers(owed.service(), request)


# ---- what it guesses


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_thinks_alike_is_always_right(temperature: float) -> None:
    """Also where it draws: both draw with the same noise."""
    of = owed.service(USE)
    params = SamplingParams(max_tokens=51, temperature=temperature, seed=3, ignore_eos=True)
    answers(of, Request("r", "tiny", tuple(owed.prompt(100)), params))
    assert accepted(of) == 1.0
    assert of.meter.counters["steps"] == 1 + 10  # the prompt's, and five tokens in each


def test_a_stranger_is_mostly_wrong() -> None:
    of = owed.service(STRANGER)
    owed.alone(of, owed.prompt(100), 50)
    assert accepted(of) < 0.2


def test_its_rows_are_those_of_what_came() -> None:
    """After guesses that were wrong it guesses as one that has read the text afresh."""
    of = owed.service(STRANGER, "fixed:k=1")
    life = owed.Life(of)
    life.ask("it", owed.prompt(90), 60)
    drafter = of.loop.drafter  # type: ignore[attr-defined]
    checked = 0
    while life.engine.busy:
        life.step()
        for stream in of.ledger.running:
            if stream.left != 1 or stream.own.limit - stream.known < 8:
                continue
            (now,) = drafter.draft([stream], [4])
            stream.leases.pop(technique.NAME).close()
            (afresh,) = drafter.draft([stream], [4])
            assert now.tokens == afresh.tokens
            assert now.odds == pytest.approx(afresh.odds, abs=1e-6)
            checked += 1
    assert checked > 20


def test_unlikely_guesses_are_the_last() -> None:
    of = owed.service(f"{USE},p_min=0.5")
    life = owed.Life(of)
    life.ask("it", owed.prompt(90), 40)
    seen: list[Any] = []
    drafter = of.loop.drafter  # type: ignore[attr-defined]
    draft = drafter.draft
    drafter.draft = lambda streams, lengths: seen.extend(found := draft(streams, lengths)) or found
    life.finish()
    drafts = [d for d in seen if d.tokens]
    assert any(len(d.tokens) < 4 for d in drafts)
    for d in drafts:
        assert all(p >= 0.5 for p in d.odds[:-1])


@pytest.mark.parametrize(("model", "guesses"), [("wide", True), ("narrow", False)])
def test_models_whose_vocabulary_is_padded_otherwise(model: str, guesses: bool) -> None:
    """Rows without a token are no guesses, and a text with a token that the smaller model lacks is nothing for it."""
    of = owed.service(f"draft-model:model={model}")
    assert owed.alone(of, owed.prompt(100), 30) == owed.alone(owed.service(), owed.prompt(100), 30)
    assert (of.meter.counters["spec_decode_num_draft_tokens"] > 20) == guesses


def test_a_text_of_tokens_that_both_have() -> None:
    of = owed.service("draft-model:model=narrow")
    tokens = [t % 100 for t in owed.prompt(100)]
    assert owed.alone(of, tokens, 30) == owed.alone(owed.service(), tokens, 30)


def test_the_law_is_told_where_it_is_asked_for() -> None:
    of = owed.service(f"{STRANGER},law=true", "rejection")
    seen: list[Any] = []
    drafter = of.loop.drafter  # type: ignore[attr-defined]
    draft = drafter.draft
    drafter.draft = lambda streams, lengths: seen.extend(found := draft(streams, lengths)) or found
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=1, ignore_eos=True)
    answers(of, Request("r", "tiny", tuple(owed.prompt(100)), params))
    drafts = [d for d in seen if d.tokens]
    assert len(drafts) > 5
    for d in drafts:
        assert d.q.shape == (len(d.tokens), owed.VOCAB)
        assert d.q.sum(1) == pytest.approx(1.0, abs=1e-5)
        assert (d.q[np.arange(len(d.tokens)), d.tokens] > 0).all()


# ---- prompts, room, contexts


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(technique, "CHUNK", 64)
    of = owed.service(USE)
    most = 0
    forward = Decoder.forward

    def watch(self: Decoder, b: Any, state: Any) -> Any:
        nonlocal most
        if self is of.loop.drafter.model:  # type: ignore[attr-defined]
            most = max(most, len(b.inputs))
        return forward(self, b, state)

    monkeypatch.setattr(Decoder, "forward", watch)
    assert owed.alone(of, owed.prompt(500), 40) == owed.alone(owed.service(), owed.prompt(500), 40)
    assert most == 64
    assert accepted(of) == 1.0
    assert of.meter.counters["steps"] == 2 + 7 + 7  # the prompt's, those in which it reads, and five tokens in each


def test_a_text_longer_than_its_context_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    of = owed.service("draft-model:model=short")
    assert owed.alone(of, owed.prompt(100), 100) == owed.alone(owed.service(), owed.prompt(100), 100)
    assert 40 <= of.meter.counters["spec_decode_num_draft_tokens"] <= 60


def test_who_finds_no_room_goes_on_without() -> None:
    of = owed.service(f"{USE},room=1")
    pool = of.ledger.pools[technique.NAME]
    assert pool.pages < 4 * owed.CONTEXT // PAGE
    held = pool.lease()
    assert pool.grow(held, pool.pages * PAGE)
    life = owed.Life(of)
    life.ask("alone", owed.prompt(100), 20)
    life.finish()
    assert life.said["alone"] == owed.alone(owed.service(), owed.prompt(100), 20)
    assert of.meter.counters["spec_decode_num_draft_tokens"] == 0
    held.close()
    life.check(idle=True)


# ---- errors


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ("k=0", "k must be between 1 and 64"),
        ("p_min=1", "p_min must be at least 0 and below 1"),
        ("weights=q3", "weights must be auto, compact, f32, bf16, q8 or q4"),
        ("room=0", "room must be at least 1 MiB"),
    ],
)
def test_wrong_knobs(knobs: str, why: str) -> None:
    with pytest.raises(UserError, match=f"draft-model: {why}"):
        owed.service(f"draft-model:model=twin,{knobs}")


def test_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for model in ("", "nowhere.gguf"):
        with pytest.raises(UserError, match="draft-model: model must be the file or directory of a smaller model"):
            technique.opened(technique.Params(model), owed.facts())


def test_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(path: Path) -> Any:
        names = ["a", "b", "c"] if path.name == "one" else ["a", "x"]
        return SimpleNamespace(vocab_size=len(names), token=names.__getitem__)

    monkeypatch.setattr(tokens, "tokenizer_of", words)
    assert tokens.difference(Path("one"), Path("one")) == ""
    assert tokens.difference(Path("one"), Path("other")) == "1 is 'x' there and 'b' here"
    monkeypatch.undo()
    monkeypatch.setattr(technique, "difference", lambda one, other: "1 is 'x' there")
    here = Path(__file__)
    with pytest.raises(UserError, match=f"draft-model: model {here.name} has other tokens: 1 is 'x' there"):
        technique.opened(technique.Params(str(here)), replace(owed.facts(), source=here))


# ---- a real one


@pytest.mark.model
def test_a_model_guesses_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = embedded()
    params = SamplingParams(max_tokens=24, temperature=0)
    with LLM(use=(f"draft-model:model={path}",)) as llm, LLM() as plain:
        assert llm.generate("The heart pumps", params)[0][0].ids == plain.generate("The heart pumps", params)[0][0].ids
        counted = llm.counters()
        assert counted["spec_decode_num_accepted_tokens"] >= 0.9 * counted["spec_decode_num_draft_tokens"] > 0
