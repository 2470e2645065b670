"""DEL's reproduction: what it watches, what it holds fast, and what it makes of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.drafts import PLAIN, Cell, Side
from diastole.engine.service import Service
from diastole.reproduce.del_rounds import Round, accepted, by_request, drafter_of, estimated, hold, watch
from diastole.reproduce.must import equal_to
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread
from diastole.types import UserError
from techniques import owed

pytest.importorskip("torch")

from diastole.reproduce import del_model, del_small  # whose recipe needs it
from diastole.reproduce.del_small import DEL, SIDES, SPARSE, STREAM, Pair, Sizes

module: Any = import_module("diastole.reproduce.del")  # whose name is a word of the language
BARE = "del:adapters=none,cost=layers,rest=0"
EASY = 6  # layers of the small model after which it hardly changes its mind


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    owed.first_layers_know(monkeypatch, EASY)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Little text of each domain, a smaller model, and an empty folder to be in."""
    monkeypatch.setenv("DIASTOLE_CACHE", str(tmp_path / "cache"))
    recipe = del_model.recipe
    said = {
        "code": Path(__file__).read_text("utf-8") * 6,
        "documentation": "A stream knows tokens and has absorbed some of them; a step absorbs the rest. " * 2_000,
        "arithmetic": recipe.arithmetic(0, 40_000),
    }
    monkeypatch.setattr(recipe, "texts", lambda seed: said)
    sizes = {"vocab": 512, "hidden": 64, "inner": 64, "heads": 2, "kv_heads": 1}
    monkeypatch.setattr(recipe, "SHAPE", replace(recipe.SHAPE, **sizes))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---- rounds


def rounds(use: str, seeds: Sequence[int] = (0,), held: int = 0, of: Service | None = None) -> list[Round]:
    """Of answers to random prompts; held: exit at which all rounds end."""
    of = of or owed.service(use)
    if held:
        hold(of, held)
    with watch(of) as seen:
        for seed in seeds:
            owed.alone(of, owed.prompt(200, seed), 80)
    return seen


def test_rounds_are_seen_as_the_engine_counts_them(easy: None) -> None:
    of = owed.service(f"{BARE},exits=2+{EASY}")
    seen = rounds("", of=of)
    counted = of.meter.counters
    assert sum(r.guesses for r in seen) == counted["spec_decode_num_draft_tokens"]
    assert sum(r.kept for r in seen) == counted["spec_decode_num_accepted_tokens"] > 10
    assert len(seen) == counted["spec_decode_num_drafts"]
    for before, after in pairwise(seen):
        assert before.tokens == before.kept + 1
        assert after.said >= before.said + before.tokens  # a step without guesses may lie between
    assert {r.exit for r in seen} <= {2, EASY}
    assert seen[-1].thought.shape == (2,)
    more = len(seen)
    owed.alone(of, owed.prompt(200, 1), 20)
    assert len(seen) == more  # nobody looks any more


def test_rounds_that_are_held_are_those_of_a_static_pair(easy: None) -> None:
    """And other exits are looked at in them."""
    static = rounds(f"{BARE},controller=static,exits={EASY},length=3", (0, 1))
    held = rounds(f"{BARE},exits=1+{EASY}+12,max_draft=3", (0, 1), held=EASY)
    assert len(static) > 20

    def shape(seen: Sequence[Round]) -> list[tuple[int, ...]]:
        return [(r.said, r.exit, r.guesses, r.kept, r.tokens) for r in seen]

    assert shape(held) == shape(static)
    ends = [own[-1].thought for own in by_request(held)]
    assert all(x[0] < x[1] <= x[2] + 0.1 for x in ends)
    free = rounds(f"{BARE},exits=1+{EASY}+12,max_draft=3", (0, 1))
    assert shape(free) != shape(static)


def test_an_exit_s_acceptance_is_the_same_estimated_and_forced(easy: None) -> None:
    exits, seeds = (2, EASY, 12), range(3)
    free = rounds(f"{BARE},exits={'+'.join(map(str, exits))}", seeds)
    thought = estimated(free)
    for exit, estimate in zip(exits, thought, strict=True):
        forced = accepted(rounds(f"{BARE},controller=static,exits={exit},length=12", seeds))
        assert estimate == pytest.approx(forced, abs=0.08)
    assert thought[1] - thought[0] > 0.2  # else this would say little


def test_figures_of_rounds_by_hand() -> None:
    def made(request: str, guesses: int, kept: int, thought: float) -> Round:
        return Round(request, 0, 4, guesses, kept, kept + 1, np.array([thought, 0.5]))

    seen = [made("a", 3, 3, 0.9), made("b", 4, 1, 0.2), made("a", 2, 0, 0.6)]
    assert accepted(seen) == 4 / 6  # nothing is known of what comes behind a wrong guess
    assert accepted([]) == 0
    np.testing.assert_allclose(estimated(seen), [(4 * 0.9 + 2 * 0.2 + 0.6) / 7, 0.5])
    assert [[r.thought[0] for r in own] for own in by_request(seen)] == [[0.9, 0.6], [0.2]]


# ---- the model


def test_without_the_small_model_the_whole_ends_at_once(texts: Path) -> None:
    with pytest.raises(UserError, match="diastole train layerskip"), del_model.small(Study()):
        pass


def test_a_made_up_model_stands_in_for_a_quick_look(texts: Path) -> None:
    study = Study(quick=True)
    with del_model.small(study) as model:
        assert set(model.apart) == {"code", "documentation", "arithmetic"}
        assert (model.path / "model.safetensors").exists()
    assert not model.path.exists()
    assert "not trained yet" in study.notes[0]


def test_the_trained_model_is_found_where_its_recipe_puts_it(texts: Path) -> None:
    folder = texts / "layerskip"
    folder.mkdir()
    del_model.made_up(folder)
    figures = '"steps": 7, "tokens": 9, "parameters": 11, "seed": 3, "agreement": {"code": {"loss": 1.25}}'
    (folder / "layerskip.json").write_text("{" + figures + "}")
    study = Study()
    with del_model.small(study) as model:
        assert model.path.resolve() == folder
    assert study.notes == ["the small model: 11 parameters, 7 steps of 9 tokens; loss of text kept apart: code 1.25"]


def test_requests_to_judge_by_are_not_those_to_choose_by() -> None:
    model = del_model.Small(Path(), {"code": np.arange(1_000, dtype=np.int32)})
    choose, judge = (model.prompts(20, judged, 0)["code"] for judged in (False, True))
    assert max(map(max, choose)) < 500 <= min(map(min, judge))
    assert {len(p) for p in (*choose, *judge)} == {del_model.PROMPT}
    assert choose == model.prompts(20, False, 0)["code"] != model.prompts(20, False, 1)["code"]


# ---- the whole, small


def test_the_whole_on_a_made_up_model(texts: Path) -> None:
    study = Study(quick=True)
    sizes = Sizes((2, 6), (1, 4), tuning=1, judged=1, turns=1, tokens=16, rounds=1, shadows=1)
    assert del_small.run(study, sizes) == 0
    assert len(study.checks) == 5
    assert all(np.isfinite(float(row.here)) for check in study.checks for row in (check.main, *check.fallbacks))
    tables = {table.title.split(",")[0]: table for table in study.tables}
    assert [row[0] for row in tables["static pairs"].rows] == [2, 6]
    acceptance = tables["acceptance of exits"].rows
    assert len(acceptance) == 3 * 5
    assert all(0 <= float(x) <= 1 for row in acceptance for x in row[2:])
    sides = {(row[0], row[1]) for row in next(t for t in study.tables if "answers" in t.title).rows}
    assert sides >= {(domain, side) for domain in ("code", STREAM) for side in (PLAIN, *SIDES)}
    assert len(study.curves) == 4


def cell(seconds: dict[str, float], different: int = 0) -> Cell:
    return Cell("w", 1, 10, {name: Side([s, s, s], 30, 10, 9, 6, different) for name, s in seconds.items()})


FAST, SLOW = Pair(4, 3), Pair(6, 2)


def found(del_in_code: float, stream: float, error: float, shadows: float, sparse: float) -> del_small.Found:
    """Plain decoding takes 1 s, the best pair of each domain half of that. DEL takes so long in code, in documentation
    half; so long in the stream."""
    domains = {"code": del_in_code, "documentation": 0.5}
    cells = {d: cell({PLAIN: 1.0, str(FAST): 0.5, **dict.fromkeys(SIDES, own)}) for d, own in domains.items()}
    cells[STREAM] = cell({PLAIN: 1.0, str(FAST): 0.6, **dict.fromkeys(SIDES, stream)})
    grid = {FAST: dict.fromkeys(domains, 2.0), SLOW: dict.fromkeys(domains, 1.5)}
    walk = [Round(f"r{i}", 0, 4, 3, 2, 3, np.zeros(2)) for i in range(4)]
    times = {DEL: Spread(shadows, shadows, shadows), SPARSE: Spread(sparse, sparse, sparse)}
    best, costs = dict.fromkeys(domains, FAST), {0: np.array([0.001]), 4: np.full(9, 0.002)}
    return del_small.Found(grid, best, FAST, cells, [("code", 4, 0.5 + error, 0.5, error)], times, walk, costs)


@pytest.mark.parametrize(
    ("made", "fails"),
    [
        (found(0.51, 0.55, 0.04, 4.0, 1.0), []),
        (found(0.52, 0.55, 0.04, 4.0, 1.0), [0]),  # 0.5 / 0.52 < 0.97
        (found(0.51, 0.60, 0.04, 4.0, 1.0), [1]),  # no faster than the static pair
        (found(0.51, 1.10, 0.04, 4.0, 1.0), [1, 2]),
        (found(0.51, 0.55, -0.06, 4.0, 1.0), [3]),
        (found(0.51, 0.55, 0.04, 6.0, 1.0), []),  # by a look every fourth round
        (found(0.51, 0.55, 0.04, 6.0, 5.5), [4]),
        (found(0.52, 0.55, 0.04, 6.0, 1.0), [0, 4]),  # which then must be fast enough too
    ],
)
def test_what_must_hold(made: del_small.Found, fails: list[int]) -> None:
    study = Study()
    del_small._judge(study, made)
    del_small._show(study, made)
    assert [i for i, check in enumerate(study.checks) if not check.holds] == fails
    assert "(code: E = 4, K = 3)" in study.checks[0].main.what
    assert "takes 300.00 ms; DEL expects 1.00 ms" in study.notes[0]


def test_the_best_pairs() -> None:
    a, b, c = Pair(2, 1), Pair(4, 1), Pair(6, 1)
    grid = {a: {"x": 3.0, "y": 0.5}, b: {"x": 1.5, "y": 1.5}, c: {"x": 0.9, "y": 1.6}}
    assert del_small._best(grid, "x") == a
    assert del_small._best(grid, "y") == c
    assert del_small._overall(grid) == b  # 2/1.5 of plain decoding's time, not 1/3 + 2


# ---- SmolLM2


def test_without_adapters_the_whole_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise UserError("make one with: diastole train exits")

    monkeypatch.setattr(module, "facts_of", lambda llm: owed.facts())
    monkeypatch.setattr(module, "find", missing)
    with pytest.raises(UserError, match="diastole train exits"):
        module._uses(Study(), None)
    study = Study(quick=True)
    assert set(module._uses(study, None)) == {module.LITERAL}
    assert "diastole train exits" in study.notes[0]
    monkeypatch.setattr(module, "find", lambda *args, **kwargs: None)
    uses = module._uses(Study(), None)
    assert set(uses) == {module.DEL, module.COUNTED, module.LITERAL}
    for use in uses.values():
        owed.same_as_plain(use)
    literal = drafter_of(owed.service(uses[module.LITERAL]))
    assert literal.exits == list(range(1, 16))
    assert len(literal.heads.ids) == owed.VOCAB


@pytest.mark.parametrize(("own", "literal", "fails"), [(1.02, 1.2, []), (1.05, 1.2, [0]), (0.9, 0.99, [1])])
def test_what_must_hold_on_smollm2(own: float, literal: float, fails: list[int]) -> None:
    slower = {module.DEL: 0.5, module.COUNTED: 0.5}
    cells = {
        module.DEL: {
            "chat": cell({PLAIN: 1.0, module.DEL: own, module.COUNTED: 2.0}),
            "code": cell({PLAIN: 1.0, **slower}),
        },
        module.LITERAL: {
            "chat": cell({PLAIN: 1.0, module.LITERAL: literal}),
            "code": cell({PLAIN: 1.0, module.LITERAL: 9.0}),
        },
    }
    study = Study()
    module._judge(study, cells, adapted=True)
    assert [i for i, check in enumerate(study.checks) if not check.holds] == fails
    assert all("(chat)" in check.main.what for check in study.checks)
    alone = Study()
    module._judge(alone, {module.DEL: {}, module.LITERAL: cells[module.LITERAL]}, adapted=False)
    assert len(alone.checks) == 1


def test_texts_that_differ_are_counted_in_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __enter__(self) -> Quiet:
            return self

        def __exit__(self, *args: object) -> None: ...

    monkeypatch.setattr(module, "LLM", Quiet)
    monkeypatch.setattr(module, "_uses", lambda *args: {module.LITERAL: "del"})
    monkeypatch.setattr(module, "_work", lambda *args: {})
    monkeypatch.setattr(module.del_small, "run", lambda study: 2)
    both = {"chat": cell({PLAIN: 1.0, module.LITERAL: 2.0}, different=1)}
    monkeypatch.setattr(module, "_cells", lambda study, engines, *rest: both if module.LITERAL in engines else {})
    study = Study()
    module.run(study)
    row = study.checks[0].main
    assert row.what.startswith("greedy texts that differ")
    assert row.here == 2 + 2
    assert row.must == equal_to(0)
    assert not study.holds


def test_missing_questions_are_told_before_anything_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise UserError("the questions are not there", param="data")

    def long(study: Any) -> int:
        raise AssertionError("it measured first")

    monkeypatch.setattr(module, "requests", missing)
    monkeypatch.setattr(module.del_small, "run", long)
    with pytest.raises(UserError, match="the questions are not there"):
        module.run(Study())
