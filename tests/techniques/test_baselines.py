"""The plain baselines of sparse attention: exact top-k, and sink and window."""

from __future__ import annotations

import pytest

from diastole.types import UserError
from techniques import owed

USES = ("exact-topk:budget=64,dense_below=100", "sink-window:budget=64,dense_below=100")


@pytest.mark.parametrize("use", ["exact-topk", "sink-window"])
def test_a_budget_for_everything_is_dense(use: str) -> None:
    owed.same_as_plain(f"{use}:budget=2048,dense_below=1,dense_layers=0")


@pytest.mark.parametrize("use", USES)
def test_what_is_owed(use: str) -> None:
    owed.acts(use)
    owed.indifferent_to_company(use, chunks=(200,))
    owed.survives_preemption(use)
    owed.abort_leaks_nothing(use, every=3)


@pytest.mark.parametrize("use", USES)
def test_random_life(use: str) -> None:
    owed.random_life(use, seed=1)


@pytest.mark.parametrize("use", ["exact-topk:budget=10", "sink-window:budget=4"])
def test_wrong_knobs_are_named(use: str) -> None:
    with pytest.raises(UserError, match="budget"):
        owed.service(use)
