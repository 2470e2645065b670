"""ShadowKV: what a technique owes, and that its factors, landmarks, outliers and buffers are what they are called."""

from __future__ import annotations

import pytest

from techniques import owed

USE = "shadowkv:rank=24,sparse_budget=64,outlier_chunks=2,local_chunks=4"


def test_it_acts() -> None:
    owed.acts(USE)


def test_a_budget_for_the_whole_prompt_is_dense() -> None:
    """Such prompts are never sealed: the same bits as a plain service's."""
    with_it, plain = owed.service("shadowkv:rank=24,sparse_budget=1024"), owed.service(kv="rows")
    for seed in range(3):
        tokens = owed.prompt(700 + 97 * seed, seed)
        assert owed.alone(with_it, tokens) == owed.alone(plain, tokens)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE, length=200, most=300)  # own output takes the pages that sealing saved


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed: int) -> None:
    owed.random_life(USE, seed=seed)
