"""What the real server says of itself: its log, its numbers, and ``diastole top``."""

from __future__ import annotations

import json

import pytest

from cli.test_cli import run
from frontend.test_serving import Running, ask, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_log_metrics_and_top_agree() -> None:
    embedded()
    server = Running("--log-format", "json", "--log-level", "debug", "--vllm-metrics")
    try:
        hurried = {"x-llm-d-slo-ttft-ms": "0.001", "x-llm-d-slo-tpot-ms": "0.001"}
        for headers in ({}, hurried):
            reply = server.http.post(
                "/v1/chat/completions", json=ask("Count to ten, slowly. " * 30, max_tokens=8), headers=headers
            )
            assert reply.status_code == 200
        eventually(lambda: len(requests(server)) == 2, "the requests are not in the log")
        first, second = requests(server)
        assert (second["finish"], second["completion_tokens"]) == ("length", 8)
        assert second["cached_tokens"] > first["cached_tokens"] == 0
        absorbed = sum(r["prompt_tokens"] - r["cached_tokens"] + r["completion_tokens"] - 1 for r in (first, second))
        assert server.metric("iteration_tokens_total_sum") == absorbed
        assert server.metric("request_decode_time_seconds_sum") <= first["seconds"] + second["seconds"]
        assert server.metric("request_prefill_time_seconds_count") == 2
        assert server.metric("slo_attained_total") == 1
        assert server.metric("slo_missed_total") == 2  # both promises of the second
        assert server.metric("kv_pages") > server.metric("kv_pages_used") == 0
        assert 'vllm:generation_tokens_total{model_name="smollm2-135m"} 16.0' in server.http.get("/metrics").text
        shown = run("top", "--once", "--interval", "0.2", "--url", server.url)
        assert shown.returncode == 0
        assert "smollm2-135m" in shown.stdout
        assert "50% ever (missed ttft 1, tpot 1)" in shown.stdout
    finally:
        assert server.stop() == 0
    assert [line for line in server.log if not line.startswith("{")] == []


def requests(server: Running) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in server.log]
    return [line for line in lines if line.get("route") == "/v1/chat/completions"]
