"""The cost model: what it fits, and how it follows jumps that no line has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diastole.engine.cost import Features, FittedCost, LinearCost, features, non_negative_fit
from diastole.engine.tail import LATEST
from diastole.types import Grant, Request, Stream

REQUEST = Request("r", "s", (), None)


def grant(done: int, n: int) -> Grant:
    return Grant(Stream(REQUEST, 0, done + n, done), n)


def test_features_are_counted_by_hand() -> None:
    assert features([grant(100, 1), grant(300, 4)]) == (1.0, 5.0, 0.405, (100.5 + 4 * 302) / 1000)


def test_a_line_is_found_again() -> None:
    truth = LinearCost(0.003, 0.0004, per_kilowork=0.001, per_kilocontext=0.002)
    cost = FittedCost()
    rng = np.random.default_rng(0)
    for _ in range(600):
        grants = [
            grant(int(rng.integers(2000)), int(rng.choice([1, 1, 4, 64]))) for _ in range(int(rng.integers(1, 9)))
        ]
        cost.learn(grants, truth.predict(grants))
    for grants in ([grant(50, 1)], [grant(1500, 8)], [grant(500, 1)] * 6, [grant(0, 256)]):
        assert cost.predict(grants) == pytest.approx(truth.predict(grants), rel=0.08)


def test_jumps_of_small_steps_are_followed() -> None:
    """Up to four rows cost next to nothing, a fifth much: as on tiles."""
    took = {1: 0.0033, 2: 0.0038, 4: 0.0048, 5: 0.0077, 8: 0.0073, 16: 0.0098}
    cost = FittedCost()
    for _ in range(60):
        for rows, seconds in took.items():
            cost.learn([grant(500, rows)], seconds)
    for rows, seconds in took.items():
        assert cost.predict([grant(500, rows)]) == pytest.approx(seconds, rel=0.05)
    assert took[5] < cost.predict([grant(500, 6)]) * 1.3  # what was never seen is as its neighbours


def test_it_follows_a_machine_that_slows_down() -> None:
    cost = FittedCost()
    for _ in range(300):
        for rows in (1, 4):
            cost.learn([grant(500, rows)], 0.003 + 0.0005 * rows)
    for _ in range(60):
        cost.learn([grant(500, 1)], 2 * 0.0035)
    assert cost.predict([grant(500, 1)]) == pytest.approx(0.007, rel=0.1)


def test_one_stall_moves_nothing() -> None:
    cost = FittedCost()
    for _ in range(300):
        for rows in (1, 4):
            cost.learn([grant(500, rows)], 0.003 + 0.0005 * rows)
    before = cost.predict([grant(500, 1)])
    cost.learn([grant(500, 1)], 5.0)
    assert cost.predict([grant(500, 1)]) < 1.15 * before


def test_coefficients_are_never_negative() -> None:
    x = np.array([[1.0, n, n * 0.1, n * n] for n in range(1, 9)])
    assert min(non_negative_fit(x, 5 - 0.1 * x[:, 1])) >= 0


@pytest.mark.parametrize("cost", [LinearCost(0.003, 0.0004, 0.001, 0.002), FittedCost()], ids=["line", "fitted"])
def test_rising_is_what_predict_says_step_by_step(cost: LinearCost | FittedCost) -> None:
    for _ in range(40):
        for rows in (1, 2, 4, 8, 16):
            cost.learn([grant(500, rows)], 0.003 + 0.0005 * rows + 0.003 * (rows > 4))
    base = [grant(300, 1), grant(40, 1)]
    want = [cost.predict([grant(300, 1 + m), base[1]]) for m in range(20)]
    np.testing.assert_allclose(cost.rising(base, 19), want, rtol=1e-9)


def test_a_slow_spell_changes_nothing_between_sizes() -> None:
    """What is seen while others work on the machine is no news about the size that happens to be seen then."""
    took = {1: 0.003, 2: 0.0034, 3: 0.004}
    cost = FittedCost()
    for _ in range(100):
        for rows, seconds in took.items():
            cost.learn([grant(500, rows)], seconds)
    for rows in (2, 3, 2):
        for _ in range(40):
            cost.learn([grant(500, rows)], 2.5 * took[rows])
        one, of = cost.predict([grant(500, 1)]), cost.predict([grant(500, rows)])
        assert of == pytest.approx(2.5 * took[rows], rel=0.05)
        assert of / one == pytest.approx(took[rows] / took[1], rel=0.05)


def test_how_far_predictions_may_be_wrong_is_known() -> None:
    """Of steps with many rows one in ten takes half as long again: a promise has to reckon with that."""
    cost, rng = FittedCost(), np.random.default_rng(1)
    truth = LinearCost(0.002, 0.0005)
    small, large = [grant(100, 1)], [grant(0, 128)]
    assert cost.worst == 1.0
    assert cost.promise(small) == cost.predict(small)
    for i in range(1200):
        grants = large if i % 2 else small
        late = 1.5 if grants is large and rng.random() < 0.1 else 1.0
        cost.learn(grants, truth.predict(grants) * late)
    assert 1.4 < cost.worst < 1.6
    assert cost.promise(large) == cost.predict(large) * cost.worst
    assert cost.promise(small) < 1.2 * cost.predict(small)  # small ones are no later for it
    for _ in range(LATEST):
        cost.learn([grant(0, 128)], truth.predict([grant(0, 128)]))
    assert cost.worst < 1.05


def test_what_was_predicted_is_not_reckoned_again_unless_it_has_changed() -> None:
    seen: list[int] = []

    def counting(grants: Sequence[Grant]) -> Features:
        seen.append(len(grants))
        return features(grants)

    cost, grants = FittedCost(of=counting), [grant(100, 1), grant(200, 1)]
    cost.predict(grants)
    cost.learn(grants, 0.004)
    assert seen == [2]
    cost.predict(grants)
    grants.append(grant(300, 1))
    cost.learn(grants, 0.005)
    assert seen == [2, 2, 3]
    assert sorted(s.size for s in cost.samples) == [2, 3]  # who asks for them finds all, however few were pending
