"""What the engine tells its meter, on a fake clock."""

from __future__ import annotations

from dataclasses import replace

from diastole.clock import FakeClock
from diastole.types import SLO
from engine.toy import request, run, toy_engine, toy_service

PROMPT = [i % 90 + 3 for i in range(100)]


def test_steps_and_promises_are_counted() -> None:
    service = toy_service(cap=48)
    engine = toy_engine(service, clock=FakeClock())
    engine.add(replace(request("kept", PROMPT), slo=SLO(first=100.0, gap=10.0)))
    engine.add(replace(request("late", PROMPT), slo=SLO(first=1e-6, gap=1e-6), salt="other"))
    run(engine)
    meter = service.meter
    tokens = meter.histograms["iteration_tokens"]
    assert sum(tokens.counts) == meter.counters["steps"]
    # Each request absorbs its prompt, and every token it gave but the last.
    assert tokens.sum == 2 * len(PROMPT) + meter.counters["generation_tokens"] - 2
    assert meter.counters["slo_attained"] == 1
    assert meter.missed == {"ttft": 1, "tpot": 1}
    for name in ("request_prefill_time_seconds", "request_decode_time_seconds"):
        assert sum(meter.histograms[name].counts) == 2
        assert meter.histograms[name].sum > 0


def test_gauges_of_pages() -> None:
    service = toy_service(pages=32, cap=200)
    engine = toy_engine(service)
    engine.add(request("r", PROMPT, most=40))
    engine.step()
    service.gauges()
    gauges = service.meter.gauges
    assert gauges["kv_pages"] == 32
    assert gauges["kv_pages_used"] == 2  # 100 tokens in pages of 64
    assert gauges["kv_cache_usage_perc"] == 2 / 32
    assert gauges["num_requests_running"] == 1
