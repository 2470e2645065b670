"""Texts that are settled place by place: as a slow twin in torch writes them, alone or in a crowd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.loops.settling import candidates, surest, uniforms
from diastole.params import PoolParams, SamplingParams, Unmasking
from diastole.types import SLO, Request, UserError
from masked import small


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("masked") / "llada")


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("masked") / "dream", shift=1)


def test_the_model_is_torchs(place: Path) -> None:
    of = small.service(place)
    life = small.Life(of)
    life.ask("a", small.prompt(30), small.params(20))
    stream = of.loop.open(life.engine.service("small").ledger.waiting[0].req)
    assert of.loop.admit(stream)
    batch = of.loop.prepare([(stream, 1)])  # type: ignore[list-item]
    found = of.model.forward(batch, of.state)
    of.loop.close(stream)
    with torch.no_grad():
        want = small.net()(torch.tensor([[*small.prompt(30), *[small.MASK] * 20]]))[0, 30:].numpy()
    np.testing.assert_allclose(found, want, atol=2e-4)
    assert want.std() > 0.5


WISHES: dict[str, dict[str, Any]] = {
    "one by one": {},
    "in few steps": {"steps": 7},
    "in blocks": {"steps": 12, "block_length": 6},
    "by entropy": {"steps": 8, "remasking": "entropy"},
    "at random": {"steps": 9, "remasking": "random"},
    "at random in blocks": {"steps": 8, "block_length": 12, "remasking": "random"},
    "warm": {"steps": 8, "temperature": 0.8, "seed": 5},
    "in one step": {"steps": 1},
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_as_the_paper_writes_it_down(place: Path, wish: dict[str, Any]) -> None:
    asked = small.params(**wish)
    assert small.alone(small.service(place), small.prompt(21), asked) == small.slowly(small.prompt(21), asked)


@pytest.mark.parametrize("wish", [w for n, w in WISHES.items() if n != "in one step"], ids=str)
def test_a_row_may_tell_the_place_behind_it(dream: Path, wish: dict[str, Any]) -> None:
    asked = small.params(**wish)
    said = small.alone(small.service(dream), small.prompt(21), asked)
    assert said == small.slowly(small.prompt(21), asked, shift=1)
    assert said != small.slowly(small.prompt(21), asked)


def test_a_crowd_changes_nothing(place: Path) -> None:
    """Requests of other lengths, at other steps, that come and go."""
    of = small.service(place)
    wishes = [(small.prompt(9 + 13 * i, i), small.params(**wish)) for i, wish in enumerate(WISHES.values())]
    want = [small.alone(of, *wish) for wish in wishes]
    life = small.Life(of)
    for i, (tokens, asked) in enumerate(wishes):
        life.ask(str(i), tokens, asked)
        life.step()
        life.step()
    life.finish()
    assert [life.said[str(i)] for i in range(len(wishes))] == want
    life.check()


def test_what_is_told_is_the_beginning_and_every_place(place: Path) -> None:
    life = small.Life(small.service(place))
    life.ask("a", small.prompt(10), small.params(24, 8))
    told, settled = 0, set()
    while life.engine.busy:
        for event in life.step():
            told += len(event.data.chosen)
            fresh = {p for p, _ in event.data.settled}
            assert not fresh & settled
            settled |= fresh
            assert told == next((i for i in range(24) if i not in settled), 24)
            assert event.units == len(fresh) == 3
    assert settled == set(range(24))
    assert [life.places["a"][i] for i in range(24)] == life.said["a"]
    data = life.last["a"].data
    assert (data.finish, data.prompt, data.steps, data.rows) == ("length", 10, 8, 8 * 34)
    assert life.service.meter.counters["prompt_tokens"] == 10


@pytest.mark.parametrize("wish", [{"steps": 12}, {"steps": 6, "block_length": 4}])
def test_cancelled_at_every_step(place: Path, wish: dict[str, Any]) -> None:
    of = small.service(place)
    other = small.alone(of, small.prompt(5), small.params(8))
    for steps in range(13):
        life = small.Life(of)
        life.ask("a", small.prompt(40), small.params(24, **wish))
        life.ask("b", small.prompt(5), small.params(8))
        for _ in range(steps):
            life.step()
        life.engine.abort("a")
        life.check()
        life.finish()
        life.check()
        assert life.said["b"] == other


def test_who_finds_no_room_waits(place: Path) -> None:
    """Pages for all of a text are taken when it is let in, so nobody has to give way."""
    one = small.service(place, memory=2 << 18)
    assert one.pages()[1] < 12
    life = small.Life(one)
    for i in range(6):
        life.ask(str(i), small.prompt(60, i), small.params(90, 10))
    life.finish()
    life.check()
    assert [life.said[str(i)] for i in range(6)] == [
        small.alone(small.service(place), small.prompt(60, i), small.params(90, 10)) for i in range(6)
    ]


def test_a_token_that_ends_the_text_ends_it(place: Path) -> None:
    """As soon as nothing before it is open; what stands behind it is never told."""
    of = small.service(place)
    whole = small.alone(of, small.prompt(10), small.params(24, 24))
    stop = whole[7]
    cut = whole.index(stop)
    life = small.Life(of)
    life.ask("a", small.prompt(10), small.params(24, 24, stop_token_ids=(stop,)))
    life.finish()
    life.check()
    assert life.said["a"] == whole[: cut + 1]
    assert life.last["a"].data.finish == "stop"


def test_fewer_steps_where_time_runs_out(place: Path) -> None:
    of = small.service(place)
    life = small.Life(of)
    life.ask("a", small.prompt(10), small.params(48, 48))
    life.finish()
    each = life.clock.now() / 48
    for least in (None, 12):
        life = small.Life(of)
        wish = small.params(48, 48, min_steps=least) if least else small.params(48, 48)
        life.ask("a", small.prompt(10), wish, SLO(10.0, 1.0, each * 24))
        life.finish()
        life.check()
        if least is None:
            assert life.last["a"].data.finish == "deadline"
        else:
            data = life.last["a"].data
            assert data.finish == "length"
            assert 12 <= data.steps < 25
            assert len(life.said["a"]) == 48
            assert life.clock.now() <= each * 24


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"max_tokens": 250}, "max_tokens"),
        ({"max_tokens": 20, "unmasking": Unmasking(block_length=7)}, "block_length"),
        ({"max_tokens": 20, "unmasking": Unmasking(steps=5, block_length=10)}, "steps"),
        ({"max_tokens": 20, "unmasking": Unmasking(steps=21)}, "steps"),
        ({"max_tokens": 20, "unmasking": Unmasking(steps=10, min_steps=11)}, "min_steps"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(place: Path, wrong: dict[str, Any], param: str) -> None:
    life = small.Life(small.service(place))
    with pytest.raises(UserError) as e:
        life.ask("a", small.prompt(30), SamplingParams(**wrong))
    assert e.value.param == param
    life.check()


@pytest.mark.parametrize("steps", [0, -1, 1 << 30, 2.5, "8"])
def test_steps_that_are_none(steps: Any) -> None:
    with pytest.raises(UserError, match="steps must be"):
        Unmasking(steps=steps)
    with pytest.raises(UserError, match="remasking must be one of"):
        Unmasking(remasking="worst")  # type: ignore[arg-type]


def test_masks_in_a_prompt_and_models_without(place: Path, tmp_path: Path) -> None:
    life = small.Life(small.service(place))
    with pytest.raises(UserError, match="holds the mask"):
        life.ask("a", [1, small.MASK], small.params(8))
    with pytest.raises(UserError, match="makes no vectors"):
        life.engine.add(Request("b", "small", (1,), PoolParams()))
    for wrong in (None, -1, 258, True):
        with pytest.raises(UserError, match="mask_token_id"):
            small.service(small.written(tmp_path / str(wrong), mask_token_id=wrong))


def test_techniques_of_other_models_are_refused(place: Path) -> None:
    for use in ("tidaldecode", "ngram", "zipcache"):
        with pytest.raises(UserError, match=r"does not read|needs a model"):
            small.service(place, use)


@given(st.integers(0, 2**63), st.integers(0, 100), st.sets(st.integers(0, 300), min_size=1))
@settings(max_examples=50, deadline=None)
def test_numbers_depend_on_their_place_alone(seed: int, step: int, places: set[int]) -> None:
    some, all_of_them = np.array(sorted(places)), np.arange(301)
    np.testing.assert_array_equal(uniforms(seed, step, some), uniforms(seed, step, all_of_them)[some])


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    rng = np.random.default_rng(0)
    logits = np.tile(rng.normal(size=8).astype(np.float32) * 2, (20_000, 1))
    tokens, _ = candidates(logits.copy(), SamplingParams(temperature=0.7), "random", rng.random(20_000))
    want = np.exp(logits[0] / 0.7)
    counts = np.bincount(tokens, minlength=8)
    expected = 20_000 * want / want.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi squared, 7 degrees, 0.1 percent


@pytest.mark.parametrize(
    ("wish", "kept"),
    [({"top_k": 2}, [1, 3]), ({"min_p": 0.4}, [1, 3]), ({"top_p": 0.49}, [1]), ({"top_p": 0.85}, [0, 1, 3])],
)
def test_only_likely_tokens_are_drawn(wish: dict[str, Any], kept: list[int]) -> None:
    """Of 0.15, 0.5, 0.1 and 0.25; among many unlikely others, so that not all are looked at first."""
    for others in (0, 2000):
        chances = np.array([0.15, 0.5, 0.1, 0.25, *[1e-9] * others], np.float32)
        logits = np.tile(np.log(chances), (4000, 1))
        u = np.random.default_rng(1).random(4000)
        tokens, _ = candidates(logits, SamplingParams(temperature=1.0, **wish), "random", u)
        assert sorted(set(tokens.tolist())) == kept


def test_a_flat_nucleus_is_found_too() -> None:
    logits = np.zeros((50, 5000), np.float32)
    tokens, _ = candidates(logits, SamplingParams(temperature=1.0, top_p=0.9), "random", np.linspace(0, 0.999, 50))
    assert len(set(tokens.tolist())) > 40


def test_how_sure() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], np.float32))
    tokens, sure = candidates(logits.copy(), SamplingParams(temperature=0), "low_confidence", np.zeros(2))
    assert tokens.tolist() == [0, 0]
    np.testing.assert_allclose(sure, [0.7, 0.4], rtol=1e-5)
    _, sure = candidates(logits.copy(), SamplingParams(temperature=0), "entropy", np.zeros(2))
    p = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(sure, (p * np.log(p)).sum(1), rtol=1e-5)
    assert surest(np.array([0.5, 0.9, 0.9, 0.1]), 2).tolist() == [1, 2]
    assert surest(np.array([0.5, 0.5, 0.5]), 2).tolist() == [0, 1]
