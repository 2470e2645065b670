"""Choosing at all rows of a draft at once, beside its twin that goes from row to row."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.params import SamplingParams
from diastole.sample import Sampler
from diastole.spec import verify
from diastole.spec.verify import Coupled, Guess
from diastole.types import Array, Draft

V = 12


def guesses(rng: np.random.Generator, logits: Array, temperature: float) -> list[Guess]:
    """For three texts, right for a while: what is said behind a right guess is looked up in the same rows."""
    found: list[Guess] = []
    first = 0
    for index in range(3):
        n = int(rng.integers(0, 3))
        sampler = Sampler(SamplingParams(temperature=temperature, seed=3), (), index)
        rows, position = [*range(first, first + n + 1)], int(rng.integers(5, 9))
        first += n + 1
        truth = verify.draw([sampler] * (n + 1), logits, [*range(position, position + n + 1)], rows)
        tokens = [t if rng.random() < 0.7 else int(rng.integers(V)) for t in truth[:n]]
        stops = frozenset({int(rng.integers(V))} if rng.random() < 0.3 else ())
        found.append(Guess(sampler, Draft(tokens), rows, position, int(rng.integers(1, 5)), stops))
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_at_once_is_row_by_row(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "FEW", 9)
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        logits = rng.normal(size=(9, V)).astype(np.float32)
        asked = guesses(rng, logits, temperature)
        at_once = Coupled._at_once(asked, logits)
        assert at_once == Coupled()._walked(asked, logits)
        kept += sum(map(len, at_once.nodes))
    assert kept > 200


def test_where_one_choice_depends_on_another_it_goes_from_row_to_row() -> None:
    logits = np.zeros((2, V), np.float32)
    for wish in ({"repetition_penalty": 1.2}, {"logprobs": 1}):
        sampler = Sampler(SamplingParams(temperature=0, seed=0, **wish), (), 0)  # type: ignore[arg-type]
        assert Coupled._at_once([Guess(sampler, Draft([0]), [0, 1], 5, 9, frozenset())], logits) is None
    plain = Sampler(SamplingParams(temperature=0, seed=0), (), 0)
    assert Coupled._at_once([Guess(plain, Draft([0], [-1]), [0, 1], 5, 9, frozenset())], logits) is None
    many = Guess(plain, Draft([0] * verify.FEW), [*range(verify.FEW + 1)], 5, 99, frozenset())
    assert Coupled._at_once([many], np.zeros((verify.FEW + 1, V), np.float32)) is None


def test_a_sampler_that_fails_is_told_apart() -> None:
    logits = np.zeros((2, V), np.float32)
    bad = Sampler(SamplingParams(temperature=0, seed=0, logit_bias={V + 5: 1.0}), (), 0)
    good = Sampler(SamplingParams(temperature=0, seed=0), (), 0)
    asked = [Guess(s, Draft([]), [i], 5, 9, frozenset()) for i, s in enumerate((bad, good))]
    verdict = Coupled().accept(asked, logits)
    assert [*verdict.errors] == [0]
    assert len(verdict.chosen[1]) == 1
