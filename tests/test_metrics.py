"""The meter: times between a request's events, and which promises were kept."""

from __future__ import annotations

import pytest

from diastole.metrics import PLACES, Meter
from diastole.types import SLO

PROMISE = SLO(first=1.0, gap=0.1)


def life(
    meter: Meter, *outputs: float, reason: str = "stop", admitted: float = 0.25, ended: float | None = None
) -> None:
    """A request that arrives at 0, with outputs at these times."""
    meter.arrived("r", 0.0, 10, PROMISE)
    meter.admitted("r", admitted)
    for at in outputs:
        meter.emitted([("r", 1)], at)
    meter.ended("r", outputs[-1] if ended is None else ended, reason)


def total(meter: Meter, name: str) -> tuple[int, float]:
    histogram = meter.histograms[name]
    return sum(histogram.counts), histogram.sum


def test_times_of_a_request() -> None:
    meter = Meter()
    life(meter, 0.75, 1.0, 1.5, ended=4.0, reason="abort")
    assert total(meter, "request_queue_time_seconds") == (1, 0.25)
    assert total(meter, "request_prefill_time_seconds") == (1, 0.5)
    assert total(meter, "request_decode_time_seconds") == (1, 0.75)
    assert total(meter, "request_time_per_output_token_seconds") == (1, 0.375)
    assert total(meter, "inter_token_latency_seconds") == (2, 0.75)
    assert total(meter, "e2e_request_latency_seconds") == (1, 4.0)


def test_choices_that_speak_together_share_a_gap() -> None:
    meter = Meter()
    meter.arrived("r", 0.0, 10, PROMISE)
    for at in (1.0, 1.5, 2.0):
        meter.emitted([("r", 1)] * 4, at)
    meter.ended("r", 2.0, "stop")
    assert meter.counters["generation_tokens"] == 12
    assert total(meter, "request_time_per_output_token_seconds") == (1, 0.5)
    assert total(meter, "inter_token_latency_seconds") == (2, 1.0)


@pytest.mark.parametrize(
    ("outputs", "reason", "ended", "attained", "missed"),
    [
        ((1.0, 1.1, 1.2), "stop", None, 1, {}),  # at the bounds themselves
        ((0.5,), "length", None, 1, {}),
        ((1.5, 1.55), "stop", None, 0, {"ttft": 1}),
        ((0.5, 0.9), "stop", None, 0, {"tpot": 1}),
        ((1.5, 2.0), "length", None, 0, {"ttft": 1, "tpot": 1}),
        ((0.5, 0.55), "abort", 0.6, 0, {}),  # cut short: neither kept nor broken
        ((0.5, 0.9), "abort", 0.9, 0, {"tpot": 1}),
        ((), "abort", 5.0, 0, {"ttft": 1}),  # it waited too long, and left
        ((), "abort", 0.5, 0, {}),
        ((), "error", 0.5, 0, {}),
    ],
)
def test_promises(
    outputs: tuple[float, ...], reason: str, ended: float | None, attained: int, missed: dict[str, int]
) -> None:
    meter = Meter()
    life(meter, *outputs, reason=reason, ended=ended)
    assert meter.counters["slo_attained"] == attained
    assert meter.missed == missed
    assert meter.snapshot()["missed"] == missed


@pytest.mark.parametrize(
    ("ended", "reason", "broken"),
    [(2.0, "stop", False), (2.25, "stop", True), (2.0, "deadline", True), (1.0, "abort", False)],
)
def test_the_promise_for_the_whole(ended: float, reason: str, broken: bool) -> None:
    meter = Meter()
    meter.arrived("r", 0.0, 10, SLO(total=2.0))
    meter.emitted([("r", 1)], 0.5)
    meter.ended("r", ended, reason)
    assert meter.missed == ({"total": 1} if broken else {})
    assert meter.counters["slo_attained"] == (reason == "stop" and not broken)


def test_a_step_counts_what_it_absorbs() -> None:
    meter = Meter()
    meter.stepped(0.5, 512)
    meter.stepped(0.25, 3)
    assert meter.counters["steps"] == 2
    assert total(meter, "step_seconds") == (2, 0.75)
    assert total(meter, "iteration_tokens") == (2, 515)


def test_guesses_by_their_place_in_the_draft() -> None:
    meter = Meter()
    assert meter.snapshot()["accepted"] == []
    for tokens, kept in ((4, 4), (4, 0), (2, 1), (5, 2)):
        meter.drafted(tokens, kept)
    assert meter.snapshot()["accepted"] == [3, 2, 1, 1, 0]
    assert sum(meter.accepted) == meter.counters["spec_decode_num_accepted_tokens"]
    meter.drafted(1000, 900)
    assert len(meter.accepted) == PLACES
    assert meter.accepted[-1] == 1
