"""A live stream beside a language model on a simulated clock: its forecast deadline cuts the model's chunks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from diastole.clock import FakeClock
from diastole.engine.compose import Mixed
from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.live import Chunk, LiveParams
from diastole.loops.frames import LiveFrames
from diastole.metrics import Meter
from diastole.models.tinyconv import TinyConv
from diastole.slots import CostModel
from diastole.state.cells import CellPool
from diastole.types import SLO, Array, Ask, Event, Grant, Request, UserError
from engine.toy import request, toy_service

PERIOD, GAP, CHUNK, FEATURES = 0.010, 0.050, 4, 8


def live_service(most: int = 4) -> Service:
    model = TinyConv(FEATURES, 1 / PERIOD, CHUNK)
    pool = CellPool(LiveFrames.specs(model), most)
    loop = LiveFrames(model, pool)
    cost, meter = LinearCost(0.002, 0.0001), Meter()
    ledger = Ledger(loop, {"cell": pool}, cost, meter, None, most)
    return Service("asr", model, loop, {"cell": pool}, Mixed(1_000), cost, ledger, meter)


def smooth(event: Event) -> Array:
    """What the model says in an event: (n, F)."""
    said = [r.data["samples"] for r in event.data.readings]
    return np.concatenate([np.empty((0, FEATURES), np.float32), *said])


class FirstComeFirstServed:
    """Rival: whoever asks first runs whole, whatever others are owed."""

    def compose(self, asks: list[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        return [Grant(a.stream, a.hi) for a in asks]


class Feeder:
    """Frames that come in at their own pace, whatever the engine is doing."""

    def __init__(self, engine: Engine, frames: Array) -> None:
        self.engine, self.frames, self.fed = engine, frames, 0

    def __call__(self, now: float) -> None:
        while self.fed < len(self.frames) and now >= (self.fed + CHUNK) * PERIOD - 1e-12:
            chunk = self.frames[self.fed : self.fed + CHUNK]
            self.fed += CHUNK
            self.engine.feed("live", Chunk(chunk, last=self.fed == len(self.frames), came=self.fed * PERIOD))


def worst_delay(prompt: int, chunked: bool) -> tuple[float, int, list[Event]]:
    """(longest wait of a chunk for its answer in seconds, steps of the language model, live events)."""
    clock = FakeClock()
    live, lm = live_service(), toy_service(cap=512)
    if not chunked:
        lm.compose = FirstComeFirstServed()
    executor = Simulated(clock)
    engine = Engine([live, lm], clock, LeastSlack(), executor)
    frames = np.random.default_rng(2).normal(size=(64, FEATURES)).astype(np.float32)
    feeder = Feeder(engine, frames)
    executor.during = feeder
    engine.add(Request("live", "asr", None, LiveParams(deadline=GAP), SLO(first=GAP, gap=GAP)))
    if prompt:
        engine.add(request("text", [j % 49 + 1 for j in range(prompt)], most=4, ignore_eos=True))
    events: list[Event] = []
    while engine.busy:
        feeder(clock.now())
        new = engine.step()
        events += [e for e in new or [] if e.id == "live"]
        if new is None:
            clock.advance(0.001)
    delays = [e.at - e.data.start - CHUNK * PERIOD for e in events]  # of the oldest chunk answered
    return max(delays), lm.meter.counters["steps"], events


def test_a_long_prompt_makes_the_live_stream_late_unless_its_forecast_is_heeded() -> None:
    alone, _, _ = worst_delay(0, chunked=True)
    greedy, _, _ = worst_delay(200, chunked=False)
    heeded, steps, _ = worst_delay(200, chunked=True)
    assert alone <= 0.005
    assert greedy > 0.150  # one 210 ms step in the way
    assert heeded <= GAP
    chunks = steps - 3  # the last chunk gives the first of the four tokens
    assert 3 <= chunks <= 12  # the prompt was cut, and not to dust


@pytest.mark.parametrize("prompt", [50, 500, 900])
def test_every_deadline_is_kept_beside_any_prompt(prompt: int) -> None:
    delay, _, events = worst_delay(prompt, chunked=True)
    assert delay <= GAP + 1e-9
    assert sum(len(smooth(e)) for e in events) == 64


def test_an_idle_stream_still_owns_its_next_deadline() -> None:
    service = live_service()
    engine = Engine([service], FakeClock(), LeastSlack())
    engine.add(Request("live", "asr", None, LiveParams(deadline=GAP), SLO(GAP, GAP)))
    engine.step()
    assert service.asks() == []
    work = 0.002 + CHUNK * 0.0001
    assert service.forecasts() == [pytest.approx((CHUNK * PERIOD + GAP, work))]
    engine.feed("live", Chunk(np.zeros((CHUNK, FEATURES), np.float32), last=True))
    assert service.forecasts() == []  # it asks now, and afterwards nothing more will come


SPLITS = [[64], [1] * 64, [4] * 16, [3, 61], [63, 1], [7, 9, 11, 13, 17, 5, 2]]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_streamed_equals_offline_for_every_split(split: list[int]) -> None:
    frames = np.random.default_rng(3).normal(size=(64, FEATURES)).astype(np.float32)
    service = live_service()
    engine = Engine([service], FakeClock(), LeastSlack())
    engine.add(Request("live", "asr", None, LiveParams(deadline=GAP), SLO(GAP, GAP)))
    out: list[Array] = []
    for lo, hi in itertools.pairwise([0, *itertools.accumulate(split)]):
        engine.feed("live", Chunk(frames[lo:hi], last=hi == 64))
        while events := engine.step():
            out += [smooth(e) for e in events]
    model = service.model
    assert isinstance(model, TinyConv)
    padded = np.concatenate([np.zeros((len(model.taps) - 1, FEATURES), np.float32), frames])
    np.testing.assert_array_equal(np.concatenate(out), model.offline(padded))
    assert not engine.busy
    assert service.ledger.pools["cell"].used == 0


def test_crowds_and_aborts_leave_each_stream_its_own_state() -> None:
    rng = np.random.default_rng(4)
    service = live_service(most=3)
    engine = Engine([service], FakeClock(), LeastSlack())
    frames = {f"s{i}": rng.normal(size=(16, FEATURES)).astype(np.float32) for i in range(5)}
    for id in frames:
        engine.add(Request(id, "asr", None, LiveParams(deadline=GAP), SLO(GAP, GAP)))
    engine.step()
    assert engine.abort("s1")
    out: dict[str, list[Array]] = {id: [] for id in frames}
    for at in range(0, 16, 4):
        for id in frames:
            if id != "s1":
                engine.feed(id, Chunk(frames[id][at : at + 4], last=at == 12))
    while events := engine.step():
        for e in events:
            out[e.id].append(smooth(e))
    model = TinyConv(FEATURES, 1 / PERIOD)
    pad = np.zeros((len(model.taps) - 1, FEATURES), np.float32)
    for id in ("s0", "s2", "s3", "s4"):
        np.testing.assert_array_equal(np.concatenate(out[id]), model.offline(np.concatenate([pad, frames[id]])))
    assert out["s1"] == []
    assert not engine.busy
    assert service.ledger.pools["cell"].used == 0


@pytest.mark.parametrize(
    "chunk",
    [np.zeros((2, 3)), np.zeros(9), np.full((1, FEATURES), math.nan), np.zeros((70_000, FEATURES))],
    ids=lambda c: str(c.shape),
)
def test_wrong_chunks_are_refused_and_the_stream_lives_on(chunk: Array) -> None:
    engine = Engine([live_service()], FakeClock(), LeastSlack())
    engine.add(Request("live", "asr", None, LiveParams(deadline=GAP), SLO(GAP, GAP)))
    with pytest.raises(UserError):
        engine.feed("live", Chunk(chunk.astype(np.float32)))
    engine.feed("live", Chunk(np.zeros((3, FEATURES), np.float32), last=True))
    assert sum(len(smooth(e)) for e in engine.step() or []) == 3
    with pytest.raises(UserError):
        engine.feed("live", Chunk(np.zeros((3, FEATURES), np.float32)))
