"""Who runs next, and for how long: least slack, all that rivals are owed, and fair shares where promises are broken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import CREDIT, LeastSlack, last_start
from diastole.types import Ask, Owed, Request, Stream

NOW = 10.0


class Wanting:
    """A service that always wants the same: requests that are late or not; each step takes so many seconds."""

    def __init__(self, *dues: float, takes: float = 0.010, forecasts: Sequence[Owed] = ()) -> None:
        stream = Stream(Request("r", "s", (), None), 0, 1000)
        self.cost, self._asks = LinearCost(takes, 0.0), [Ask(stream, 1, 1000, due, False) for due in dues]
        self._forecasts = forecasts

    def asks(self) -> Sequence[Ask]:
        return self._asks

    def forecasts(self) -> Sequence[Owed]:
        return self._forecasts


def turn(*services: Wanting, ran: int | None = None) -> tuple[int, float]:
    """Who runs now, and the seconds that it may; one has just run alone."""
    dispatch = LeastSlack()
    if ran is not None:
        dispatch.next([s if i == ran else Wanting() for i, s in enumerate(services)], NOW - 0.1)
    found = dispatch.next(services, NOW)
    assert found is not None
    return found[0], found[2]


def shares(services: Sequence[Wanting], seconds: Sequence[float], turns: int) -> list[float]:
    """What each has had after so many turns, if its steps take so long."""
    dispatch, now, had = LeastSlack(), NOW, [0.0] * len(services)
    for _ in range(turns):
        found = dispatch.next(services, now)
        assert found is not None
        now += seconds[found[0]]
        had[found[0]] += seconds[found[0]]
    return had


@pytest.mark.parametrize("due", [9.99, 8.0])
def test_where_promises_are_broken_each_has_its_share(due: float) -> None:
    """One is late by five seconds, and the other by less: it need not wait until the first has caught up."""
    had = shares([Wanting(5.0), Wanting(due)], [0.4, 0.02], 210)
    assert had[0] == pytest.approx(had[1], abs=0.4)


def test_who_is_late_does_not_wait_for_a_longer_step_of_who_had_as_much() -> None:
    dispatch, order, now = LeastSlack(), [], NOW
    for _ in range(22):
        found = dispatch.next([Wanting(5.0), Wanting(9.9)], now)
        assert found is not None
        order.append(found[0])
        now += [0.39, 0.02][found[0]]
    assert order[0] == 0
    assert order[1:21] == [1] * 20
    assert order[21] == 0


def test_who_has_asked_for_nothing_saves_little_up() -> None:
    dispatch, now, silent, late = LeastSlack(), NOW, Wanting(), Wanting(9.9)
    for _ in range(1000):
        assert dispatch.next([Wanting(5.0), silent], now) is not None
        now += 0.1  # a hundred seconds
    had = 0.0
    while (found := dispatch.next([Wanting(5.0), late], now)) is not None and found[0] == 1:
        now += 0.1
        had += 0.1
    assert had == pytest.approx(CREDIT, abs=0.11)


def test_who_has_minutes_left_takes_no_time_of_who_is_late() -> None:
    assert turn(Wanting(5.0), Wanting(600.0), ran=0)[0] == 0
    assert turn(Wanting(5.0), Wanting(10.5), ran=0)[0] == 1  # it will take that time anyway


def test_who_can_be_in_time_comes_before_who_is_late() -> None:
    assert turn(Wanting(5.0), Wanting(10.012))[0] == 1  # it takes 10 ms, and so does the first


def test_the_tightest_comes_first_while_all_can_be_in_time() -> None:
    assert turn(Wanting(12.0), Wanting(11.0))[0] == 1


def test_a_short_step_comes_first_where_a_long_one_would_make_it_late_and_need_not_be_late_itself() -> None:
    long = Wanting(10.100, takes=0.080)  # may start until 10.020
    assert turn(long, Wanting(10.050))[0] == 1  # until 10.040, too late behind the first
    assert turn(long, Wanting(10.095))[0] == 0  # until 10.085
    assert turn(long, Wanting(10.055, takes=0.030))[0] == 0  # one of them will be late


def test_a_step_ends_when_a_rival_must_start() -> None:
    index, seconds = turn(Wanting(11.0), Wanting(12.0))
    assert index == 0
    assert seconds == pytest.approx(1.0)  # its own promise
    assert turn(Wanting(11.0, forecasts=[Owed(10.2, 0.05)]), Wanting(10.9))[1] == pytest.approx(0.15)


def test_one_late_request_hides_no_other_of_its_service() -> None:
    """The second stream's promise can be kept, so the first service's step leaves it time."""
    index, seconds = turn(Wanting(5.0), Wanting(9.0, 10.3), ran=1)
    assert index == 0
    assert seconds == pytest.approx(0.29)


def test_a_batch_that_cannot_be_in_time_as_a_whole_still_bounds_others() -> None:
    both = Wanting(10.03, 10.05)
    both.cost = LinearCost(0.0, 0.02)  # 20 ms each, 40 together
    assert turn(Wanting(5.0, takes=0.001), both, ran=1) == (0, pytest.approx(0.01))


def test_what_rivals_owe_is_done_one_after_the_other() -> None:
    assert last_start([], NOW) == math.inf
    assert last_start([Owed(10.5, 0.1)], NOW) == pytest.approx(10.4)
    assert last_start([Owed(10.51, 0.1), Owed(10.5, 0.1)], NOW) == pytest.approx(10.31)
    assert last_start([Owed(11.0, 0.1), Owed(10.5, 0.1)], NOW) == pytest.approx(10.4)
    assert last_start([Owed(10.05, 0.1), Owed(10.5, 0.1)], NOW) == pytest.approx(10.4)  # the first is lost anyway
    assert last_start([Owed(9.0, 0.1)], NOW) == math.inf
