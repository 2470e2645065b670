"""GET /metrics: what is on the page, and that nobody outside can make it grow."""

from __future__ import annotations

import asyncio
import random
import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from diastole.metrics import PLACES, Meter
from diastole.serve.metrics import Traffic, page
from diastole.types import SLO
from serve.fakes import FakeBackend, Running
from serve.test_chat import wait_ready

# What vLLM's own dashboards ask for, of the families that exist here.
VLLM = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits", "vllm:num_preemptions", "vllm:prompt_tokens", "vllm:generation_tokens",
    "vllm:request_success", "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens", "vllm:request_generation_tokens", "vllm:iteration_tokens_total",
    "vllm:spec_decode_num_drafts", "vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
}  # fmt: skip


def live(meter: Meter) -> None:
    """One request that was too late, and a step."""
    meter.arrived("r", 0.0, 7, SLO(first=0.1, gap=1.0))
    meter.admitted("r", 0.1)
    meter.emitted([("r", 1)], 0.5)
    meter.emitted([("r", 1)], 0.75)
    meter.ended("r", 0.75, "length")
    meter.stepped(0.25, 300)
    meter.drafted(3, 2)
    meter.drafted(2, 1)
    meter.gauges |= {"kv_pages": 8, "kv_pages_used": 6}


def series(text: str) -> dict[str, float]:
    """Values by name and labels as they are written."""
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize("vllm", [False, True])
def test_families(vllm: bool) -> None:
    with Running(vllm_metrics=vllm) as server:
        wait_ready(server)
        live(server.backend.meter)
        text = httpx.get(server.url + "/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert {n for n in families if not n.startswith("diastole_")} == (VLLM if vllm else set())
    assert all(f.documentation for f in families.values())
    values = series(text)
    for prefix in ("diastole_", "vllm:") if vllm else ("diastole_",):
        for line, value in {
            'request_success_total{finished_reason="length",model_name="echo"}': 1,
            'request_success_total{finished_reason="abort",model_name="echo"}': 0,
            'request_prefill_time_seconds_sum{model_name="echo"}': 0.4,
            'request_decode_time_seconds_bucket{le="0.25",model_name="echo"}': 1,
            'iteration_tokens_total_bucket{le="256.0",model_name="echo"}': 0,
            'iteration_tokens_total_bucket{le="512.0",model_name="echo"}': 1,
            'spec_decode_num_accepted_tokens_total{model_name="echo"}': 3,
            'spec_decode_num_accepted_tokens_per_pos_total{model_name="echo",position="0"}': 2,
            'spec_decode_num_accepted_tokens_per_pos_total{model_name="echo",position="1"}': 1,
            'spec_decode_num_accepted_tokens_per_pos_total{model_name="echo",position="2"}': 0,
        }.items():
            assert values[prefix + line] == value
    assert values['diastole_slo_missed_total{model_name="echo",which="ttft"}'] == 1
    assert values['diastole_slo_missed_total{model_name="echo",which="tpot"}'] == 0
    assert values['diastole_slo_attained_total{model_name="echo"}'] == 0
    assert values['diastole_kv_pages{model_name="echo"}'] == 8
    assert values['diastole_kv_pages_used{model_name="echo"}'] == 6
    assert values["diastole_engine_up"] == 1


def test_places_in_drafts_are_bounded() -> None:
    backend = FakeBackend()
    asyncio.run(backend.start())
    backend.meter.drafted(10_000, 9_000)
    values = series(asyncio.run(page(backend, Traffic(()))).decode())
    assert len([name for name in values if "_per_pos_total" in name]) == PLACES


def test_ten_thousand_odd_values_make_no_series() -> None:
    backend = FakeBackend()
    asyncio.run(backend.start())
    traffic = Traffic(["/v1/models"])
    before = asyncio.run(page(backend, traffic, True)).decode()
    noise = random.Random(1)
    for i in range(10_000):
        odd = f"{i}" + "".join(chr(noise.choice((10, 34, 92, 0x1F30D, noise.randrange(1, 0xD7FF)))) for _ in range(9))
        traffic.count(odd, odd, 404)
        traffic.count("/v1/models", odd, 200)
        backend.meter.finished[odd] += 1
        backend.meter.missed[odd] += 1
    after = asyncio.run(page(backend, traffic, True)).decode()
    new = {k: v for k, v in series(after).items() if k not in series(before)}
    assert new == {
        'diastole_http_requests_total{method="other",route="other",status="404"}': 10_000,
        'diastole_http_requests_total{method="other",route="/v1/models",status="200"}': 10_000,
        'diastole_request_success_total{finished_reason="other",model_name="echo"}': 10_000,
        'vllm:request_success_total{finished_reason="other",model_name="echo"}': 10_000,
        'diastole_slo_missed_total{model_name="echo",which="other"}': 10_000,
    }


def test_odd_requests_make_no_series() -> None:
    with Running() as server:
        wait_ready(server)
        port = server.server.port
        for i in range(300):
            with socket.create_connection(("127.0.0.1", port), 10) as s:
                s.sendall(f'PROPFIND /odd{i}"\\{{x=1}} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: odd\r\n\r\n'.encode())
                assert s.recv(100).startswith(b"HTTP/1.1 4")
        text = httpx.get(server.url + "/metrics").text
    assert "odd" not in text
    assert "PROPFIND" not in text
    assert len(text) < 40_000
