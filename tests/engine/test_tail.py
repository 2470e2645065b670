"""What the latest values stay below, but for one that is far from all others."""

from __future__ import annotations

import numpy as np

from diastole.engine.tail import FAR, LATEST, SOME, Tail


def test_nothing_seen_is_the_least() -> None:
    assert Tail(1.0).worst == 1.0


def test_the_largest_of_the_latest() -> None:
    tail, values = Tail(0.0), np.random.default_rng(0).permutation(LATEST) + 1.0
    for seen, value in enumerate(values, 1):
        tail.add(value)
        assert tail.worst == max(values[:seen])
    for _ in range(LATEST):
        tail.add(-1.0)
    assert tail.worst == 0.0  # what was seen is forgotten, and nothing is less than the least


def test_what_happened_once_counts_for_little() -> None:
    tail = Tail(0.0)
    tail.add(50.0)
    for _ in range(SOME - 2):
        tail.add(2.0)
    assert tail.worst == 50.0  # too few to tell
    tail.add(2.0)
    assert tail.worst == 2.0 * FAR
    tail.add(48.0)
    assert tail.worst == 50.0  # it happened twice
