"""Lean Attention: what a technique owes, and that work is spread as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diastole.engine.service import Service
from diastole.kernels.table import Native
from diastole.types import UserError
from techniques import owed

USE = "lean-attention:tile=64,workers=5"


def native(of: Service) -> Native:
    """Its operators, to be watched."""
    ops = of.model.ops
    if not isinstance(ops, Native):
        pytest.skip("the native operators are not built")
    return ops


@pytest.mark.parametrize("kv", ["bf16", "int8", "f32", "rows", "rows8"])
@pytest.mark.parametrize("knobs", ["", ":workers=7", ":help=false,workers=3"])
def test_with_the_engine_s_own_pieces_every_bit_is_the_same(knobs: str, kv: str) -> None:
    owed.same_as_plain(f"lean-attention{knobs}", kv=kv)


@pytest.mark.parametrize("tile", [64, 1024])
def test_pieces_of_any_size_give_nearly_the_same(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound: in float32, 2e-6 of what the engine's own attention gives, in every layer of every step."""
    of = owed.service(f"lean-attention:tile={tile}", kv="f32")
    ops, apart = native(of), []
    real = ops.attend_by

    def beside(*given: Any) -> None:
        real(*given)
        out, want = given[8], np.empty_like(given[8])
        ops.attend(*given[:8], want)
        apart.append(np.linalg.norm(out - want) / np.linalg.norm(want))

    monkeypatch.setattr(ops, "attend_by", beside)
    owed.alone(of, owed.prompt(1300), most=4)
    assert len(apart) == 16 * (6 + 3)
    assert 0 < max(apart) <= 2e-6


def test_it_acts() -> None:
    owed.acts(USE)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed: int) -> None:
    owed.random_life(USE, seed=seed)


def test_with_a_selector_what_is_selected_is_its_own() -> None:
    with_it = owed.service("tidaldecode:budget=64,layers=2+7,dense_below=100", "lean-attention")
    without = owed.service("tidaldecode:budget=64,layers=2+7,dense_below=100")
    tokens = owed.prompt(500)
    assert owed.alone(with_it, tokens) == owed.alone(without, tokens)


def test_how_it_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of every step goes through it, with the knobs that were given."""
    of = owed.service("lean-attention:tile=128,workers=3,help=false")
    ops, seen = native(of), []
    real = ops.attend_by

    def watched(*given: Any) -> None:
        seen.append(given[10:])
        real(*given)

    monkeypatch.setattr(ops, "attend_by", watched)
    owed.alone(of, owed.prompt(300), most=4)
    assert seen == [("shares", 128, 3)] * (16 * (2 + 3))


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("tile=100", "tile must be a multiple of 64"),
        ("tile=0", "tile must be"),
        ("tile=131072", "tile must be"),
        ("workers=-1", "workers must lie"),
        ("workers=5000", "workers must lie"),
        ("help=perhaps", "help must be"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"lean-attention:{knobs}")
    assert e.value.param == "use"


def test_two_kernels_are_refused() -> None:
    with pytest.raises(UserError, match="lean-attention and lean-attention both fill"):
        owed.service(USE, USE)
