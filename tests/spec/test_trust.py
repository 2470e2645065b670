"""Guessing goes on where it pays, and rests where it does not, as steps were timed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest

from diastole.spec.trust import EVERY, ROW, Trust

PLAIN = 1.0  # seconds of a plain step


def run(
    trust: Trust, steps: int, gain: Callable[[int], float], streams: int = 1, came: Callable[[int], int] = lambda _: 2
) -> list[bool]:
    """Whether somebody was asked in each of so many steps.

    Args:
        gain: what the step with the n-th question saves, in plain steps.
        came: tokens of each stream then; two are expected.
    """
    asked: list[bool] = []
    for _ in range(steps):
        asks = trust.asks(streams)
        n = sum(asked)
        tokens = came(n) * streams if asks else streams
        seconds = (2 - gain(n)) * PLAIN if asks else PLAIN
        trust.stepped(streams, tokens, 2 * streams, seconds, asks)
        asked.append(asks)
    return asked


def rests(asked: list[bool]) -> list[int]:
    """Lengths of the whole stretches without questions that are longer than plain steps are."""
    found = [len([*steps]) for asks, steps in groupby(asked) if not asks]
    found = found[not asked[0] : len(found) - (not asked[-1])]
    return [n for n in found if n > ROW]


def test_plain_steps_stand_among_the_others() -> None:
    """The first ones come first, for nobody guesses where nothing is known to judge that by."""
    asked = run(Trust(4.0, 20), 3 * (ROW + EVERY), lambda _: 0.1)
    assert asked == ([False] * ROW + [True] * EVERY) * 3


def test_the_first_plain_step_after_guesses_is_not_timed() -> None:
    trust, n = Trust(4.0, 20), 0
    for _ in range(2_000):
        asks = trust.asks(1)
        n = 0 if asks else n + 1
        trust.stepped(1, 2 if asks else 1, 2, 1.95 if asks else 9.0 if n == 1 else 1.0, asks)
    assert trust.credit == 10.0  # a twentieth of a step is saved each time


def test_what_pays_never_rests() -> None:
    asked = run(Trust(4.0, 20), 300, lambda n: 0.5 if n % 3 else -0.5)  # most of the time
    assert rests(asked) == []


def test_what_does_not_pay_loses_no_more_than_it_may_and_rests_longer_and_longer() -> None:
    asked = run(Trust(4.0, 20), 700, lambda _: -0.25)
    assert asked.index(False, ROW) == ROW + 17  # four steps' time, and one more question
    assert rests(asked)[:5] == [20, 40, 80, 160, 160]
    assert sum(asked) == 17 + 6 * 5  # a step's time, and one more, after each


def test_it_is_trusted_again_when_it_pays_again() -> None:
    trust = Trust(4.0, 20)
    run(trust, 300, lambda _: -0.25)
    assert sum(run(trust, 300, lambda _: 0.5)) > 100  # after the rest under way
    assert rests(run(trust, 300, lambda _: -0.25))[0] == 20


@pytest.mark.parametrize("streams", [1, 8])
def test_somebody_new_is_given_a_little_time(streams: int) -> None:
    trust = Trust(4.0, 1_000)
    run(trust, 100, lambda _: -0.25, streams)
    assert not any(run(trust, 50, lambda _: -0.25, streams))
    while trust.credit <= 0:  # what was lost beyond the rest comes first
        assert not any(run(trust, 5, lambda _: -0.25, streams))
        trust.joined(streams)
    credit = trust.credit
    assert credit <= 0.5 / streams
    asked = run(trust, 50, lambda _: -0.05, streams)
    assert asked[0]
    assert sum(asked) == pytest.approx(credit / 0.05, abs=1.1)


def test_new_ones_who_cost_more_than_they_are_given_wait_for_each_other() -> None:
    trust, asked = Trust(0.0, 100_000), 0
    for _ in range(400):
        trust.joined(1)
        asked += sum(run(trust, 10, lambda _: -0.9))
    assert asked == pytest.approx(400 * 0.5 / 0.9, abs=3)


def test_a_moment_in_which_the_machine_was_elsewhere_decides_nothing() -> None:
    trust = Trust(4.0, 20)
    asked = run(trust, 100, lambda n: -500.0 if n == 50 else 0.1)
    assert rests(asked) == []


def test_chance_decides_nothing() -> None:
    """Two tokens are expected of each step, and come on average."""
    came = np.random.default_rng(0).integers(1, 4, 500)
    asked = run(Trust(3.0, 20), 500, lambda _: 0.05, came=lambda n: int(came[n]))
    assert rests(asked) == []


def test_expectations_that_are_wrong_count_for_less() -> None:
    asked = run(Trust(4.0, 20), 300, lambda _: 0.2, came=lambda n: 1 + (n % 2))  # half as much: a loss of 0.3
    assert rests(asked)[:2] == [20, 40]


def test_every_number_of_streams_has_its_own_plain_steps() -> None:
    trust = Trust(4.0, 20)
    run(trust, 50, lambda _: 0.1, streams=1)
    asked = run(trust, 2 * ROW, lambda _: 0.1, streams=2)
    assert asked == [False] * ROW + [True] * ROW


def test_before_a_rest_guesses_are_verified_whatever_is_thought_of_them() -> None:
    trust = Trust(4.0, 20)
    assert not trust.leaving
    run(trust, ROW + 16, lambda _: -0.25)
    assert trust.leaving
