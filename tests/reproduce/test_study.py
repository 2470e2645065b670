"""What a study decides, and how it measures."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import count
from math import inf, nan

import numpy as np
import pytest

from diastole.reproduce.must import at_least, at_most, between, equal_to, figure, less_than, more_than
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread, interleaved


@pytest.mark.parametrize(
    ("must", "inside", "outside", "words"),
    [
        (at_least(1.6), 1.6, 1.5999, "≥ 1.6x"),
        (at_most(0.02), 0.02, 0.0201, "≤ 0.02x"),
        (more_than(3), 3.1, 3, "> 3x"),
        (less_than(0.5, "random split"), 0.49, 0.5, "< 0.5x (random split)"),
        (equal_to(0), 0, 1, "= 0x"),
        (between(0.2, 0.4), 0.4, 0.41, "0.2 to 0.4x"),
    ],
)
def test_comparisons_decide_and_say_so(must: object, inside: float, outside: float, words: str) -> None:
    assert must.holds(inside)  # type: ignore[attr-defined]
    assert not must.holds(outside)  # type: ignore[attr-defined]
    assert must.words("x") == words  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [at_least, at_most, more_than, less_than, equal_to, lambda b: between(b, b)])
@pytest.mark.parametrize("odd", [nan, inf, -inf])
def test_what_is_not_finite_holds_to_nothing(make: Callable[[float], object], odd: float) -> None:
    for bound, here in ((odd, 1.0), (1.0, odd), (odd, odd)):
        assert not make(bound).holds(here)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.8349, "x", "1.835x"),
        (95.0, "%", "95%"),
        (0.000123456, "", "0.0001235"),
        (12345.6, "tokens", "12,346 tokens"),
        (True, "", "yes"),
        (nan, "ms", "none"),
        ("none", "ms", "none"),
    ],
)
def test_figures(value: float, unit: str, shown: str) -> None:
    assert figure(value, unit) == shown


def study(*rows: tuple[float, bool, str]) -> Study:
    """One with these rows: what was measured (1 is needed), whether it is a fallback, why it may fail."""
    made = Study()
    for i, (here, fallback, why) in enumerate(rows):
        made.check(f"row {i}", here, at_least(1), fallback=fallback, why=why)
    return made


@pytest.mark.parametrize(
    ("rows", "holds", "verdict"),
    [
        ([(1, False, "")], True, "holds here: 1 inequality"),
        ([(1, False, ""), (0, False, "small")], False, "does not hold here: 1 of 2 inequalities: row 1"),
        ([(0, False, "small"), (1, True, "")], True, "holds here: 1 inequality, 1 of them by fallback: row 0"),
        ([(0, False, "small"), (0, True, "")], False, "does not hold here: 1 of 1 inequality: row 0"),
        ([(0, False, "small"), (1, True, ""), (0, True, "")], False, "does not hold here: 1 of 1 inequality: row 0"),
        ([(0, False, ""), (1, True, "")], False, "does not hold here: 1 of 1 inequality: row 0"),  # no reason given
        ([(1, False, "small"), (0, True, "")], True, "holds here: 1 inequality"),  # the fallback is not needed
        ([(0, False, "small"), (1, False, ""), (1, True, "")], False, "does not hold here: 1 of 2 inequalities: row 0"),
        ([(nan, False, "")], False, "does not hold here: 1 of 1 inequality: row 0"),
        ([], False, "does not hold here: nothing was checked"),
    ],
)
def test_every_inequality_that_decides_must_hold(
    rows: list[tuple[float, bool, str]], holds: bool, verdict: str
) -> None:
    made = study(*rows)
    assert made.holds is holds
    assert made.verdict == verdict


def test_mistakes_of_a_reproduction_are_refused() -> None:
    made = Study()
    with pytest.raises(ValueError, match="no row before it"):
        made.check("x", 1, at_least(1), fallback=True)
    made.check("x", 1, at_least(1), headline=True)
    with pytest.raises(ValueError, match="two headlines"):
        made.check("y", 1, at_least(1), headline=True)
    with pytest.raises(ValueError, match="2 cells"):
        made.table("t", ["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="2 values of x and 1 of y"):
        made.curve("c", [1, 2], [1])
    with pytest.raises((TypeError, ValueError)):
        made.check("an array", np.zeros(3), at_least(1))  # type: ignore[arg-type]


def test_check_tells_whether_the_fallback_is_needed_and_takes_numpys_numbers() -> None:
    made = Study()
    assert made.check("ids are the same", np.True_, equal_to(True)) is True  # type: ignore[arg-type]
    assert made.check("speed", np.float32(0.5), at_least(1), unit="x") is False  # type: ignore[arg-type]
    assert [c.main.shown for c in made.checks] == ["yes", "0.5x"]


def test_turns_are_taken_and_the_median_decides() -> None:
    """A clock that only the work moves: b takes 2 s in one round, in which a takes 4."""
    now, turn, order = [0.0], count(), []
    collecting = []

    def work(name: str, seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def action() -> None:
            order.append(name)
            collecting.append(gc.isenabled())
            now[0] += next(left)

        return action

    pair = {"a": work("a", [100, 2, 4, 2]), "b": work("b", [100, 1, 2, 0.5])}
    times = interleaved(pair, rounds=3, warm=1, step=lambda: next(turn) and None, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert not any(collecting)
    assert gc.isenabled()
    assert next(turn) == 8
    assert (times.median("a"), times.median("b")) == (2, 1)
    assert times.speedup("b", over="a") == Spread(2, 2, 4)
    made = Study()
    assert made.check("speed", times.speedup("b", over="a"), at_least(2), unit="x")
    assert made.checks[0].main.shown == "2x (2-4)"


def test_the_collector_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0}, rounds=1)
    assert gc.isenabled()


def test_what_holds_is_a_plain_truth_also_of_numpys_numbers() -> None:
    for must in (at_least(np.float64(1.0)), at_most(np.float64(3.0)), between(np.float64(1), np.float64(3))):
        assert must.holds(np.float64(2.0)) is True
        assert must.holds(np.float64(9.0) if must.words("")[0] != "≥" else np.float64(0)) is False
