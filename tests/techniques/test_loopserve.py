"""LoopServe: what a technique owes, and that it looks where it says."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.nn.lines import Partly
from diastole.types import Array, Batch, UserError
from techniques import owed

KNOBS = "sample_rows=16,block=64,budget=64,reselect_every=4,sink=4,recent=16,dense_below=100"
USE = f"loopserve:alpha=0.7,{KNOBS}"


@pytest.mark.parametrize("kv", ["rows", "bf16", "int8", "f32"])
def test_all_of_the_attention_and_a_budget_for_everything_are_dense(kv: str) -> None:
    owed.same_as_plain("loopserve:alpha=1,budget=2048,reselect_every=4,recent=16,dense_below=1", kv=kv)


def test_below_its_threshold_it_does_nothing() -> None:
    owed.same_as_plain("loopserve:alpha=0.5,budget=128,dense_below=2000")


@pytest.mark.parametrize("use", [USE, f"loopserve:alpha=1,{KNOBS}", USE.replace("budget=64", "budget=2000")])
def test_each_half_acts(use: str) -> None:
    owed.acts(use)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)
    owed.indifferent_to_company(USE.replace("block=64", "block=256"), chunks=(100, 400), length=1000)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(3))
def test_random_life(seed: int) -> None:
    owed.random_life(USE.replace("block=64", "block=128"), seed=seed)
