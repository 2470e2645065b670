"""What all but one of the latest values stay below."""

from __future__ import annotations

import numpy as np

from diastole.engine.tail import LATEST, SOME, Tail


def test_nothing_seen_is_the_least() -> None:
    assert Tail(1.0).worst == 1.0


def test_one_of_a_thousand_may_be_larger() -> None:
    tail, values = Tail(0.0), np.random.default_rng(0).permutation(LATEST) + 1.0
    for value in values[: SOME - 1]:
        tail.add(value)
    assert tail.worst == max(values[: SOME - 1])  # too few to leave one out
    for value in values[SOME - 1 :]:
        tail.add(value)
    assert tail.worst == LATEST - 1
    for _ in range(LATEST):
        tail.add(-1.0)
    assert tail.worst == 0.0  # what was seen is forgotten, and nothing is less than the least
