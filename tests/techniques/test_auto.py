"""Auto: what a drafter and a controller owe together, and who is asked first."""

from __future__ import annotations

from typing import Any

import pytest

from diastole.params import SamplingParams
from diastole.spec.either import Either
from diastole.types import Request, UserError
from techniques import owed

USE = "auto"


def test_the_text_is_the_same() -> None:
    owed.same_as_plain(USE)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("beside", [(), ("int8-kv",), ("double-sparsity:budget=64,channels=8,dense_below=100",)])
def test_random_life(seed: int, beside: tuple[str, ...]) -> None:
    owed.random_life(USE, *beside, seed=seed)


def test_a_long_match_comes_before_the_table() -> None:
    of: Any = owed.service(USE)
    drafter = of.loop.drafter
    assert isinstance(drafter, Either)
    cases = (([1, 2, 3, 9, 8, 7, 1, 2, 3], [9, 8, 7, 1]), ([202, 203, 209, 205, 202, 203], [209, 205, 202, 203]))
    for ids, want in cases:
        text = of.loop.open(Request("r", "tiny", tuple(ids), SamplingParams(max_tokens=50, seed=0)))
        (found,) = drafter.draft([text], [4])
        assert list(found.tokens) == want
    lookup, table = drafter.drafters
    assert lookup.draft([text], [4])[0].tokens == ()  # two tokens match: that is for the table
    assert table.draft([text], [4])[0].tokens


@pytest.mark.parametrize("kmax", [0, 65])
def test_wrong_knobs(kmax: int) -> None:
    with pytest.raises(UserError, match="auto: kmax"):
        owed.service(f"{USE}:kmax={kmax}")
