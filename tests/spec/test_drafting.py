"""Drafts change how fast a text comes and nothing else: not a token, not a bit of its log probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diastole.engine.executor import Simulated
from diastole.engine.service import Service
from diastole.params import SamplingParams
from diastole.state.pages import PAGE
from diastole.techniques.ngram import Lookup
from diastole.types import Draft, Request, Stream, UserError
from spec.oracle import Oracle, answers
from techniques import owed

USE = "ngram:k=12"


@pytest.fixture(params=[(1.0, 1), (0.7, 1), (0.9, 3)], ids=["right", "sometimes-wrong", "branching"])
def oracle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Oracle]:
    """Stands in for the technique's drafter, which would seldom be right about random text."""
    right, branches = request.param
    made = Oracle(owed.service, right, branches=branches)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: made.draft(streams, lengths))
    yield made
    assert made.drafted > 0


def test_the_text_is_the_same_and_comes_in_fewer_steps(oracle: Oracle) -> None:
    owed.same_as_plain(USE)
    of, plain = owed.service(USE), owed.service()
    owed.alone(of, owed.prompt(300), 40)
    owed.alone(plain, owed.prompt(300), 40)
    assert of.meter.counters["steps"] < plain.meter.counters["steps"] - 5
    kept = of.meter.counters["spec_decode_num_accepted_tokens"]
    assert of.meter.counters["steps"] + kept == plain.meter.counters["steps"]
    assert of.meter.counters["generation_tokens"] == 40


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8", "rows", "rows8"])
def test_with_every_form_of_rows(oracle: Oracle, kv: str) -> None:
    owed.same_as_plain(USE, kv=kv)


def test_company_and_chunks_change_nothing(oracle: Oracle) -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing(oracle: Oracle) -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing(oracle: Oracle) -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(4))
def test_random_life(oracle: Oracle, seed: int) -> None:
    owed.random_life(USE, seed=seed)


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.3, "top_k": 20, "n": 3},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "logit_bias": {5: 3.0, 9: -100.0}},
        {"temperature": 1.0, "stop_token_ids": tuple(range(0, 256, 16))},
    ],
    ids=str,
)
def test_with_all_that_a_request_may_ask_for(oracle: Oracle, wish: dict[str, object]) -> None:
    for seed in range(6):
        params = SamplingParams(**{"max_tokens": 40, "seed": seed, "logprobs": 2, **wish})  # type: ignore[arg-type]
        request = Request("r", "tiny", tuple(owed.prompt(150, seed)), params)
        assert answers(owed.service(USE), request) == answers(owed.service(), request)


def test_a_guess_starves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pool is full, a stream goes on without a draft."""
    made = Oracle(owed.service)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: made.draft(streams, lengths))
    pages = 3
    life = owed.Life(owed.service(USE, pages=pages, prefix=False))
    life.ask("full", owed.prompt(pages * PAGE - 20), 20)
    life.finish()
    life.check(idle=True)
    assert life.service.meter.counters["preemptions"] == 0


@pytest.mark.parametrize("alone", ["fixed", "smartspec"])
def test_a_controller_wants_a_drafter(alone: str) -> None:
    with pytest.raises(UserError, match=f"{alone} needs something that drafts"):
        owed.service(alone)


# ---- controllers


@pytest.mark.parametrize("pace", ["fixed:k=6", "smartspec", "smartspec:trust=0.1,probe_every=3"])
def test_controllers_change_nothing(oracle: Oracle, pace: str) -> None:
    owed.indifferent_to_company(USE, pace)
    owed.random_life(USE, pace, seed=3)


def test_a_drafter_that_takes_longer_than_it_saves_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked, clock, each = Oracle(owed.service, 1.0), 0, 0.0, 0.0
    forward = Simulated.run

    def draft(_: Lookup, streams: list[Stream], lengths: list[int]) -> list[Draft]:
        nonlocal asked, clock
        asked, clock = asked + 1, clock + each
        return made.draft(streams, lengths)

    def run(*args: Any) -> Any:
        nonlocal clock
        clock += 1.0
        return forward(*args)

    monkeypatch.setattr(Lookup, "draft", draft)
    monkeypatch.setattr(Simulated, "run", run)
    calls, texts = [], []
    for each in (0.0, 20.0):  # seconds  # noqa: B007 - drafts take them
        of = owed.service(USE, "smartspec:trust=4,probe_every=20")
        of.loop.timer = lambda: clock  # type: ignore[attr-defined]
        asked = 0
        texts.append(owed.alone(of, owed.prompt(100), 90))
        calls.append(asked / of.meter.counters["steps"])
    assert texts[0] == texts[1]
    assert calls[0] > 0.7  # of its steps
    assert 0 < calls[1] < 0.25


def test_fixed_is_the_most_that_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def watch(_: Lookup, streams: list[Stream], n: list[int]) -> list[Draft]:
        lengths.extend(n)
        return [Draft(())] * len(streams)

    monkeypatch.setattr(Lookup, "draft", watch)
    owed.alone(owed.service(USE, "fixed:k=3"), owed.prompt(100), 20)
    assert max(lengths) == 3
    assert lengths[-1] == 1  # no guess beyond the end of the text


# ---- prompt lookup


def guess(
    ids: list[int], n: int = 4, knobs: str = "", told: tuple[int, ...] = (), said: tuple[int, ...] = ()
) -> list[int]:
    of: Service = owed.service(f"ngram{knobs}")
    params = SamplingParams(max_tokens=50, seed=0, prediction=told)
    stream = of.loop.open(Request("r", "tiny", tuple(ids), params))
    for token in said:
        of.loop.learn(stream, token)
    (draft,) = of.loop.drafter.draft([stream], [n])  # type: ignore[attr-defined]
    return [*draft.tokens]


def test_lookup_takes_the_longest_match() -> None:
    assert guess([1, 2, 3, 40, 41, 9, 2, 3, 50, 51, 1, 2, 3]) == [40, 41, 9, 2]


def test_an_answer_that_begins_as_foretold_goes_on_so() -> None:
    told = (40, 41, 42, 43, 44)
    assert guess([1, 2, 3], told=told) == [40, 41, 42, 43]
    assert guess([1, 2, 3], told=told, said=(40,)) == [41, 42, 43, 44]
    assert guess([1, 2, 3], told=told, said=(40, 41, 42, 43)) == [44]  # no guess beyond its end
    assert guess([1, 2, 3], told=told, said=(9,)) == []


def test_an_answer_that_comes_back_to_what_was_foretold_goes_on_so() -> None:
    told = (40, 41, 42, 43, 44)
    assert guess([1, 2, 3], told=told, said=(9, 41, 42)) == [43, 44]
    assert guess([1, 2, 3, 50], told=told, said=(9, 2, 3)) == [50, 9, 2, 3]  # the text itself is looked at, too
    assert guess([43, 44, 7], told=told, said=(41, 42), n=2) == [43, 44]


def test_a_prediction_saves_steps_and_changes_nothing() -> None:
    tokens, steps = owed.prompt(80), []
    answer = tuple(t for t, _ in owed.alone(owed.service(), tokens, 40))
    for told in ((), answer, answer[::-1], (*answer[:20], 0, *answer[20:])):
        of = owed.service("ngram:k=8")
        life = owed.Life(of)
        params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logprobs=1, prediction=told)
        life.engine.add(Request("r", "tiny", tuple(tokens), params))
        life.finish()
        assert tuple(t for t, _ in life.said["r"]) == answer
        steps.append(of.meter.counters["steps"])
    plain, right, wrong, nearly = steps
    assert right <= plain - 30
    assert wrong <= plain
    assert nearly <= plain - 25


@pytest.mark.parametrize("told", [(0, owed.VOCAB), "text"])
def test_a_prediction_that_is_none_is_refused(told: Any) -> None:
    with pytest.raises(UserError, match="prediction"):
        owed.Life(owed.service("ngram")).engine.add(
            Request("r", "tiny", (1, 2), SamplingParams(max_tokens=4, prediction=told))
        )


def test_lookup_takes_the_latest_of_equal_matches() -> None:
    assert guess([2, 3, 40, 41, 2, 3, 50, 51, 2, 3]) == [50, 51, 2, 3]


def test_lookup_goes_round_where_the_match_runs_into_the_end() -> None:
    assert guess([7, 8, 9, 7, 8, 9, 7, 8], 5) == [9, 7, 8, 9, 7]


def test_lookup_guesses_nothing_without_a_match() -> None:
    assert guess([1, 2, 3, 4]) == []
    assert guess([5, 3, 4, 3]) == []  # one token is too little
    assert guess([5, 3, 4, 3], knobs=":least=1") == [4, 3, 4, 3]
    assert guess([1]) == []


@pytest.mark.parametrize("knobs", ["k=0", "k=65", "least=0", "least=5,most=4"])
def test_lookup_s_wrong_knobs(knobs: str) -> None:
    with pytest.raises(UserError, match="ngram: "):
        owed.service(f"ngram:{knobs}")


def test_lookup_is_found_by_hand() -> None:
    """The fast search beside the obvious one."""
    from diastole.kernels.grams import longest_match, slow_longest_match

    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, 4, int(rng.integers(1, 40))).astype(np.int32)
        best = (len(ids), 0)
        for end in range(len(ids) - 1):
            length = 0
            while length < min(5, end + 1) and ids[end - length] == ids[len(ids) - 1 - length]:
                length += 1
            if length and length >= best[1]:
                best = end + 1, length
        assert longest_match(ids, 5) == slow_longest_match(ids, 5) == best
