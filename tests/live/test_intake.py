"""What comes late, early, twice, never, too fast, or all at once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from diastole.bench.streaming import serving
from diastole.clock import FakeClock
from diastole.engine.dispatch import last_start
from diastole.engine.engine import Engine
from diastole.live import Chunk, LiveParams, Signal
from diastole.loops.intake import AT_ONCE, Intake
from diastole.models.tinyconv import TinyConv
from diastole.types import Array, Request, UserError

SIGNAL = Signal(100.0, ("a", "b"), 10)  # units of 0.1 s


def intake(**params: object) -> Intake:
    return Intake(SIGNAL, LiveParams(**params), 0.0)  # type: ignore[arg-type]


def samples(lo: int, hi: int) -> Array:
    return np.arange(lo, hi, dtype=np.float32)[:, None] + np.array([0, 0.5], np.float32)


def test_units_are_ready_when_their_last_sample_has_come() -> None:
    it = intake()
    assert it.take(Chunk(samples(0, 15)), 1.0, 0) == 1
    assert it.take(Chunk(samples(15, 20)), 1.1, 1) == 2
    assert (it.ready(1), it.ready(2)) == (1.0, 1.1)
    assert it.expected(3) == pytest.approx(1.1 + 0.1)  # ten more samples at 100 Hz
    np.testing.assert_array_equal(it.leave(2), samples(0, 20))


def test_a_second_that_comes_together_is_owed_together_and_more_at_twice_the_pace() -> None:
    it = intake()
    it.take(Chunk(samples(0, 300)), 5.0, 0)
    together = int(AT_ONCE / SIGNAL.period)
    assert it.ready(together) == 5.0
    assert it.ready(30) == pytest.approx(5.0 + 28 * 0.05 + 0.05 - 0.5)
    assert it.whole(30) == 5.0


def test_a_source_whose_clock_is_fast_is_not_answered_later_and_later() -> None:
    it = intake()
    known = 0
    for i in range(1, 3601):  # an hour in which it sends 0.1% too fast
        known = it.take(Chunk(samples(0, 100)), i * 0.999, known)
        assert it.ready(10) == pytest.approx(i * 0.999)
        it.leave(10)


@pytest.mark.parametrize("lost", ["wait", "conceal", "drop"])
def test_a_gap(lost: str) -> None:
    it = intake(lost=lost, patience=0.2)
    known = it.take(Chunk(samples(0, 25), 0), 0.0, 0)
    known = it.take(Chunk(samples(40, 50), 40), 0.1, known)
    if lost == "wait":
        assert (known, it.counts.lost) == (2, 0)  # it may still come
        known = it.take(Chunk(samples(50, 65), 50), 0.2, known)
    assert it.counts.lost == (20 if lost == "drop" else 15)  # also what was left of a unit
    known = it.take(Chunk(samples(25, 40), 25), 0.3, known)  # too late
    assert it.counts.late == 15
    if lost == "drop":
        assert it.until_break(0, known) == 2
        it.leave(2)
        assert it.begins_anew(2) == 20
        assert it.at(2) == 40
    else:
        data = it.leave(known)
        np.testing.assert_array_equal(data[25:40], 0)
        np.testing.assert_array_equal(data[40:], samples(40, len(data)))


def test_pieces_in_any_order_and_twice_are_the_stream() -> None:
    rng = np.random.default_rng(0)
    edges = [0, *sorted(rng.choice(np.arange(1, 400), 30, replace=False).tolist()), 400]
    parts = [(lo, samples(lo, hi)) for lo, hi in itertools.pairwise(edges)]
    it, known = intake(lost="wait", patience=60), 0
    order = [*rng.permutation(len(parts)), *rng.permutation(len(parts))]
    for i in order:
        lo, data = parts[i]
        known = it.take(Chunk(data, lo), 0.0, known)
    assert known == 40
    assert it.counts.lost == 0
    assert it.counts.late == 400
    np.testing.assert_array_equal(it.leave(40), samples(0, 400))


def test_the_oldest_is_shed() -> None:
    it = intake(overrun="drop")
    known = it.take(Chunk(samples(0, 95)), 0.0, 0)
    known = it.shed(40, 0, known)
    assert known == 3
    assert it.counts.overrun == 60
    assert len(it) == 35
    assert it.at(0) == 60
    assert it.begins_anew(0) == 60
    np.testing.assert_array_equal(it.leave(3), samples(60, 90))


def test_the_end_is_a_unit_of_its_own_even_if_nothing_is_left() -> None:
    it = intake()
    known = it.take(Chunk(samples(0, 20)), 0.0, 0)
    assert it.take(Chunk(samples(0, 0), last=True), 0.1, known) == 3
    assert len(it.leave(3)) == 20


def running(**params: object) -> Engine:
    engine, _ = serving(TinyConv(2, 100.0, chunk=4), 2)
    engine.add(Request("s", "live", None, LiveParams(**params)))  # type: ignore[arg-type]
    return engine


def readings(engine: Engine) -> list[object]:
    found = []
    while events := engine.step():
        found += [(r.kind, round(r.start, 3), round(r.end, 3)) for e in events for r in e.data.readings]
    return found


def test_behind_a_gap_the_model_begins_anew() -> None:
    engine = running(lost="drop")
    x = samples(0, 30)
    engine.feed("s", Chunk(x[:8], 0))
    engine.feed("s", Chunk(x[20:30], 20, last=True))
    found = []
    out = []
    while events := engine.step():
        for e in events:
            found += [r.kind for r in e.data.readings]
            out += [r.data["samples"] for r in e.data.readings if r.kind == "smooth"]
            assert e.data.counts.lost == 12
    assert found == ["smooth", "gap", "smooth"]
    model = TinyConv(2, 100.0)
    pad = np.zeros((4, 2), np.float32)
    np.testing.assert_array_equal(out[0], model.offline(np.concatenate([pad, x[:8]])))
    np.testing.assert_array_equal(out[1], model.offline(np.concatenate([pad, x[20:30]])))


def test_too_much_at_once_is_refused_and_the_stream_lives_on() -> None:
    engine = running()
    with pytest.raises(UserError, match="send slower") as refused:
        engine.feed("s", Chunk(np.zeros((70_000, 2), np.float32)))
    assert refused.value.code == "backpressure"
    with pytest.raises(UserError, match="too far from 0"):
        engine.feed("s", Chunk(samples(0, 4), 10**12))
    engine.feed("s", Chunk(samples(0, 4), last=True))
    assert readings(engine) == [("smooth", 0.0, 0.04)]


def test_what_is_too_much_may_be_dropped_instead() -> None:
    engine = running(overrun="drop")
    engine.feed("s", Chunk(np.zeros((70_000, 2), np.float32)))
    kinds = [r[0] for r in readings(engine)]  # type: ignore[index]
    assert kinds[0] == "gap"
    assert set(kinds[1:]) == {"smooth"}


def test_an_hour_of_silence_costs_nothing_and_holds_nobody_up() -> None:
    clock = FakeClock()
    engine, service = serving(TinyConv(2, 100.0), 2)
    engine.clock = clock
    engine.add(Request("s", "live", None, LiveParams()))
    engine.feed("s", Chunk(samples(0, 1)))
    while engine.step():
        pass
    clock.advance(3600.0)
    assert engine.step() is None
    assert last_start(service.forecasts(), clock.now()) == math.inf  # what has passed bounds nobody's step
    engine.feed("s", Chunk(samples(1, 2), last=True))
    assert len(readings(engine)) == 1
    assert service.ledger.pools["cell"].used == 0  # type: ignore[attr-defined]


def test_state_does_not_grow() -> None:
    engine, service = serving(TinyConv(2, 100.0), 1)
    engine.add(Request("s", "live", None, LiveParams()))
    pool = service.ledger.pools["cell"]
    before = sum(a.nbytes for a in pool.arrays.values())  # type: ignore[attr-defined]
    for _ in range(600):
        engine.feed("s", Chunk(np.zeros((100, 2), np.float32)))
        while engine.step():
            pass
    live = service.ledger.running[0].own
    assert sum(a.nbytes for a in pool.arrays.values()) == before  # type: ignore[attr-defined]
    assert len(live.intake) == len(live.intake._ready) == 0
    assert len(live.intake._origins) == 1
