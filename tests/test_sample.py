"""Sampling: exact distributions, independence of company, and the order of the chain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.kernels.draw import candidates, draw_key, gumbel, sample, slow_sample, stream_key, wish
from diastole.params import SamplingParams
from diastole.sample import Chosen, Sampler, choose_all
from diastole.types import Array, UserError


def logits(seed: int, n: int = 500) -> Array:
    return (np.random.default_rng(seed).normal(size=n) * 3).astype(np.float32)


def sampler(index: int = 0, prompt: tuple[int, ...] = (), **params: object) -> Sampler:
    return Sampler(SamplingParams(**{"seed": 1, **params}), prompt, index)  # type: ignore[arg-type]


def choose(s: Sampler, row: Array, position: int) -> Chosen:
    return choose_all([s], row[None], [position])[0]


def test_greedy_is_argmax_and_does_not_touch_the_logits() -> None:
    row = logits(0)
    kept = row.copy()
    assert choose(sampler(temperature=0), row, 5).id == row.argmax()
    choose(sampler(temperature=0, logit_bias={3: 50}, presence_penalty=1), row, 5)
    np.testing.assert_array_equal(row, kept)


def test_draws_follow_the_softmax() -> None:
    """Chi-square of 20,000 draws against the exact probabilities, by their 99.9 % quantile."""
    row = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    draws = 20_000
    s = sampler(temperature=0.7)
    counts = np.bincount([choose(s, row, t).id for t in range(draws)], minlength=5)
    p = np.exp(row.astype(float) / 0.7)
    p /= p.sum()
    chi = (((counts - draws * p) ** 2) / (draws * p)).sum()
    assert chi < 18.47  # 4 degrees of freedom


def test_noise_is_standard_gumbel() -> None:
    ids = np.arange(200_000)
    noise = gumbel(draw_key(stream_key(7, 0), 0), ids).astype(float)
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    for seed, index, position in ((7, 0, 1), (8, 0, 0), (7, 1, 0)):
        other = draw_key(stream_key(seed, index), position)
        assert abs(np.corrcoef(noise, gumbel(other, ids))[0, 1]) < 0.01


SETTINGS = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 5, 40, 2_000]),
    st.sampled_from([1.0, 0.95, 0.5137219, 0.01]),
    st.sampled_from([0.0, 0.05, 0.9]),
)
SPREADS = st.just(0.0) | st.floats(0.01, 12)  # flat exactly, or far enough from it that no two masses are alike


@given(st.integers(1, 5_000), st.integers(0, 2**64 - 1), SPREADS, st.lists(SETTINGS, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_the_native_sampler_is_the_plain_one(n: int, key: int, spread: float, wishes: list[tuple[float, ...]]) -> None:
    r = np.random.default_rng(n)
    rows = (r.normal(size=(len(wishes), n)) * spread).astype(np.float32)
    adjusted = {i: rows[i] + np.float32(spread) * np.eye(1, n, dtype=np.float32)[0] for i in range(0, len(rows), 2)}
    packed = np.frombuffer(b"".join(wish(*w, key) for w in wishes), np.uint8)
    given = (adjusted, packed, np.arange(len(rows)) + 7)
    got, want = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    sample(rows, *given, got)
    slow_sample(rows, *given, want)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.5}, {"temperature": 1e-38}])
def test_strange_logits_give_a_token_and_no_hang(strange: float, params: dict[str, float]) -> None:
    row = logits(3, 100)
    row[17] = strange
    chosen = choose(sampler(**params), row, 0).id
    assert 0 <= chosen < 100
    assert chosen == 17 or strange == -np.inf


@given(st.integers(0, 50), st.integers(-(2**63), 2**63 - 1), st.floats(0.1, 3), st.floats(0.05, 1), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_draw_depends_on_the_request_alone(row: int, seed: int, temperature: float, top_p: float, top_k: int) -> None:
    params = {"seed": seed, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    alone = choose(sampler(**params), logits(row), 9)
    crowd = choose_all(
        [sampler(temperature=1.3), sampler(**params), sampler(temperature=0)],
        np.stack([logits(70), logits(row), logits(71)]),
        [3, 9, 4],
    )
    assert crowd[1] == alone


def test_choices_of_one_request_differ() -> None:
    row = np.zeros(1000, np.float32)
    assert len({choose(sampler(index), row, 0).id for index in range(8)}) > 6


def naive(row: Array, p: SamplingParams) -> set[int]:
    """The same filters, written slowly: tokens sorted by score, ties by id."""
    scores = row.astype(np.float64) / p.temperature
    order = sorted(range(len(row)), key=lambda i: (-scores[i], i))
    if p.top_k:
        order = order[: p.top_k]
    mass = np.exp(scores[order] - scores[order[0]])
    mass /= mass.sum()
    if p.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(mass), p.top_p)) + 1]
    best = scores[order[0]]
    return {i for i in order if scores[i] >= best + (np.log(p.min_p) if p.min_p else -np.inf)}


@pytest.mark.parametrize("n", [5, 500, 20_000])
@pytest.mark.parametrize(
    "params", [{"top_k": 4}, {"top_p": 0.9}, {"top_p": 0.2}, {"min_p": 0.1}, {"top_k": 50, "top_p": 0.8, "min_p": 0.02}]
)
def test_filters_equal_the_slow_ones(n: int, params: dict[str, float]) -> None:
    p = SamplingParams(temperature=1.5, **params)  # type: ignore[arg-type]
    ids, _ = candidates(logits(n, n), p.temperature, p.top_k, p.top_p, p.min_p)
    assert set(ids.tolist()) == naive(logits(n, n), p)


def test_a_flat_distribution_keeps_its_whole_nucleus() -> None:
    ids, _ = candidates(np.zeros(5_000, np.float32), 1.0, 0, 0.5, 0.0)
    assert len(ids) == 2_500


def test_penalties_count_prompt_and_output() -> None:
    row = np.array([2.0, 1.9, -1.0], np.float32)
    assert choose(sampler(prompt=(0,), temperature=0, repetition_penalty=1.5), row, 0).id == 1
    s = sampler(temperature=0, frequency_penalty=0.06, prompt=(0, 0, 0))
    assert [choose(s, row, t).id for t in range(4)] == [0, 0, 1, 0]
    s = sampler(temperature=0, presence_penalty=0.5)
    assert [choose(s, row, t).id for t in range(3)] == [0, 1, 0]
    assert choose(sampler(temperature=0, logit_bias={2: 100}), row, 0).id == 2


def test_logprobs_are_the_models_own() -> None:
    row = logits(4)
    chosen = choose(sampler(temperature=0, logprobs=3, logit_bias={7: 100}), row, 0)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    assert chosen.id == 7
    assert chosen.logprob == pytest.approx(exact[7], abs=1e-5)
    assert [i for i, _ in chosen.top] == np.argsort(-row)[:3].tolist()
    assert [p for _, p in chosen.top] == pytest.approx(np.sort(exact)[::-1][:3].tolist(), abs=1e-5)


WRONG: list[tuple[str, object]] = [
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**63),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("temperature", float("nan")),
    ("temperature", -0.1),
    ("temperature", float("inf")),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -1),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("presence_penalty", 3),
    ("frequency_penalty", float("nan")),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: float("nan")}),
    ("seed", 2**63),
    ("stop", ("x",) * 1000),
    ("stop", ("",)),
    ("stop", ("a" * 100_000,)),
    ("stop", "bare"),
    ("stop_token_ids", (-1,)),
    ("n", 10_000),
    ("n", 0),
    ("logprobs", 21),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: str(v)[:20])
def test_wrong_values_name_the_field(name: str, value: object) -> None:
    with pytest.raises(UserError) as e:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert e.value.param == name
    assert name in e.value.message
