"""ZipCache: what is sealed where, that nobody's company changes it, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from diastole import registry
from diastole.nn.inside import Read
from diastole.registry import Spec
from diastole.slots import Facts
from diastole.state.pages import PAGE
from diastole.state.zip import ZipKV
from diastole.types import UserError
from techniques import owed

USE = "zipcache"
SMALL = "zipcache:slice=64,recompress_every=64"


def test_sixteen_bits_change_nothing() -> None:
    same, plain = owed.service("zipcache:hi=16,lo=16"), owed.service(kv="bf16")
    for seed in range(3):
        tokens = owed.prompt(700 + 97 * seed, seed)
        assert owed.alone(same, tokens) == owed.alone(plain, tokens)


def test_it_acts() -> None:
    owed.acts(USE)
    owed.acts("zipcache:hi=4,lo=4")
    owed.acts("zipcache:hi=2,lo=2")


@pytest.mark.parametrize("use", [USE, SMALL, "zipcache:slice=128,recompress_every=192,probe_random=0.3"])
def test_company_changes_nothing(use: str) -> None:
    owed.indifferent_to_company(use)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption("zipcache:raw=1")


def test_an_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(3))
def test_random_lives(seed: int) -> None:
    """Also where room in 16 bits is what is missing."""
    owed.random_life(["zipcache:raw=0.3", SMALL + ",raw=0.25", "zipcache:raw=1"][seed], seed=seed)
