"""Who may run when promises are broken already."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.types import Ask, Request, Stream


class Wanting:
    """A service that always wants the same."""

    def __init__(self, due: float) -> None:
        stream = Stream(Request("r", "s", (), None), 0, 1000)
        self.cost, self._asks = LinearCost(0.010, 0.001), [Ask(stream, 1, 1000, due, False)]

    def asks(self) -> Sequence[Ask]:
        return self._asks

    def forecasts(self) -> Sequence[float]:
        return []


def order(services: Sequence[Wanting], now: float, turns: int) -> list[int]:
    dispatch, found = LeastSlack(), []
    for _ in range(turns):
        turn = dispatch.next(services, now)  # type: ignore[arg-type]
        assert turn is not None
        found.append(turn[0])
    return found


@pytest.mark.parametrize("due", [9.99, 60.0])
def test_where_one_is_late_all_take_turns(due: float) -> None:
    """By five seconds, and the other by a moment or not yet: it need not wait until the first has caught up."""
    assert order([Wanting(5.0), Wanting(due)], 10.0, 4) == [0, 1, 0, 1]


def test_who_can_be_in_time_comes_before_who_is_late() -> None:
    assert order([Wanting(5.0), Wanting(10.012)], 10.0, 2) == [1, 1]  # it takes 11 ms, and may not begin later


def test_the_tightest_comes_first_while_all_can_be_in_time() -> None:
    assert order([Wanting(12.0), Wanting(11.0)], 10.0, 2) == [1, 1]
