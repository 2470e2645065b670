"""SpecDec++: when it stops, that it changes no text, and that its recipe's head is the served one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.heads.acceptance import AcceptanceHead
from diastole.types import Array, Request, Stream, UserError
from diastole.weights.calibration import Calibration, about
from techniques import owed
from techniques.test_longspec import block as made_block
from techniques.test_longspec import drafting

block = made_block  # a fixture
LONG = "tree_shape=1+1+1+1+1+1"


def head(bias: float = 0.0, seed: int = 0, width: int = 128) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(width, width)).astype(np.float32) / 20,
        "b": np.zeros(width, np.float32),
        "out": rng.normal(size=(2, width)).astype(np.float32) / 8,
        "out_b": np.array([0, bias], np.float32),
    }


def use(tmp_path: Path, bias: float = 0.0, knobs: str = "") -> str:
    path = tmp_path / f"head{bias}"
    Calibration(head(bias), about("specdec-pp", owed.facts())).write(path)
    return f"specdec-pp:head={path}{knobs}"


def test_the_text_is_the_same(block: str, tmp_path: Path) -> None:
    owed.same_as_plain(f"{block},{LONG}", use(tmp_path))


def test_company_and_chunks_change_nothing(block: str, tmp_path: Path) -> None:
    owed.indifferent_to_company(f"{block},{LONG}", use(tmp_path))


def test_preemption_and_aborts_leave_nothing(block: str, tmp_path: Path) -> None:
    owed.survives_preemption(f"{block},{LONG}", use(tmp_path))
    owed.abort_leaks_nothing(f"{block},{LONG}", use(tmp_path), every=5)


@pytest.mark.parametrize("pace", ["smartspec", "fixed:k=5"])
def test_random_life(block: str, tmp_path: Path, pace: str) -> None:
    owed.random_life(f"{block},{LONG}", use(tmp_path), pace, seed=1)


@pytest.mark.parametrize(
    ("bias", "knobs", "count"),
    [(50.0, "", 6), (-50.0, "", 1), (-50.0, ",min_draft=3", 3), (50.0, ",max_draft=4", 4)],
)
def test_a_sure_head_draws_out_and_an_unsure_one_stops(
    block: str, tmp_path: Path, bias: float, knobs: str, count: int
) -> None:
    loop, stream = drafting(block, owed.prompt(60), LONG.removeprefix("tree_shape="), use(tmp_path, bias, knobs))
    (found,) = loop.drafter.draft([stream], [6])
    assert len(found.tokens) == count


def test_it_stops_when_one_of_all_is_too_likely_wrong(tmp_path: Path) -> None:
    """0.8 for each guess: the product falls below a half with the fourth."""
    of: Any = owed.service("ngram")
    from diastole import registry

    module, params = registry.load(registry.Spec.parse(use(tmp_path, 0.0, ",threshold=0.5")))
    halt = module.TECHNIQUE(params, owed.facts())["halt"]
    halt.head = lambda hidden: np.full(len(hidden), 0.8, np.float32)
    streams = [Stream(Request(str(i), of.name, (1,), None), 0, 1) for i in range(2)]
    hidden = np.zeros((2, 128), np.float32)
    assert [halt.stop(streams, [n, n], hidden) for n in (1, 2, 3, 4)] == [[False] * 2] * 3 + [[True] * 2]
    assert halt.stop(streams, [1, 5], hidden) == [False, True]  # a new round begins, another goes on


def test_wrong_settings_are_named(block: str, tmp_path: Path) -> None:
    good = use(tmp_path)
    for knobs, why in (("threshold=0", "threshold"), ("threshold=1", "threshold"), ("min_draft=0", "min_draft")):
        with pytest.raises(UserError, match=f"specdec-pp: {why}"):
            owed.service(block, f"{good},{knobs}")
    with pytest.raises(UserError, match="specdec-pp: min_draft"):
        owed.service(block, f"{good},min_draft=9,max_draft=8")
    with pytest.raises(UserError, match="specdec-pp needs something that drafts"):
        owed.service(good)
    with pytest.raises(UserError, match="ngram does not ask specdec-pp when to stop"):
        owed.service("ngram", good)
    Calibration(head(width=64), about("specdec-pp", owed.facts())).write(tmp_path / "narrow")
    with pytest.raises(UserError, match="reads 64 numbers, and hidden states have 128"):
        owed.service(block, f"specdec-pp:head={tmp_path / 'narrow'}")
    torn = head()
    del torn["b"]
    Calibration(torn, about("specdec-pp", owed.facts())).write(tmp_path / "torn")
    with pytest.raises(UserError, match="is no acceptance head"):
        owed.service(block, f"specdec-pp:head={tmp_path / 'torn'}")
    with pytest.raises(UserError, match="diastole train specdec-pp"):
        owed.service(block, f"specdec-pp:head={tmp_path / 'nowhere'}")


# ---- the recipe


def test_the_recipe_s_head_is_the_served_one() -> None:
    torch = pytest.importorskip("torch")
    from diastole.recipes.specdec_pp import Head

    torch.manual_seed(0)
    made = Head(32)
    torch.nn.init.normal_(made.block.weight, std=0.1)
    hidden = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32)
    with torch.no_grad():
        want = torch.softmax(made(torch.from_numpy(hidden)), -1)[:, 1].numpy()
    np.testing.assert_allclose(AcceptanceHead(made.tensors())(hidden), want, atol=1e-5)


def test_training_finds_what_there_is_and_is_calibrated() -> None:
    pytest.importorskip("torch")
    from diastole.recipes.specdec_pp import Examples, train

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(20_000, 16)).astype(np.float32)
    right = rng.random(20_000) < 1 / (1 + np.exp(-2 * hidden[:, 0] - 1))
    _, figures = train(Examples(hidden, right))
    assert figures["auc"] > 0.8
    assert figures["ece"] < 0.05


def test_area_and_error_by_hand() -> None:
    pytest.importorskip("torch")
    from diastole.recipes.specdec_pp import area, calibration_error

    told, right = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert area(told, right) == 0.75
    assert calibration_error(np.array([0.25, 0.25, 0.75, 0.75]), np.array([True, False, True, True])) == 0.25
