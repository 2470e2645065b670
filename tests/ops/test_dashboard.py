"""The Grafana dashboard and the Prometheus example stand for what the server really gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve.fakes import Running
from serve.test_chat import HELLO, URL, wait_ready

OPS = Path(__file__).parents[2] / "ops"
DASHBOARD: dict[str, Any] = json.loads((OPS / "grafana" / "diastole.json").read_text("utf-8"))


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries() -> list[str]:
    asked = [t["expr"] for p in panels() for t in p.get("targets", [])]
    return [*asked, *(v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query")]


def test_every_name_and_label_is_on_the_page() -> None:
    with Running() as server:
        wait_ready(server)
        httpx.post(server.url + URL, json=HELLO)
        text = httpx.get(server.url + "/metrics").text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    names = {s.name for s in samples}
    labels = {label for s in samples for label in s.labels}
    asked = {name for q in queries() for name in re.findall(r"\bdiastole_\w+", q)}
    assert len(asked) > 20
    assert asked <= names
    grouped = {x.strip() for q in queries() for group in re.findall(r"by \(([^)]*)\)", q) for x in group.split(",")}
    matched = {x for q in queries() for x in re.findall(r"(\w+)(?:=~|!=|=)\"", q)}
    assert grouped | matched <= labels


def test_what_the_server_counts_is_shown() -> None:
    asked = " ".join(queries())
    for name in (
        "time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "generation_tokens_total", "num_requests_waiting", "kv_pages_used", "prefix_cache_hits_total",
        "num_preemptions_total", "slo_attained_total", "slo_missed_total", "http_requests_total", "engine_up",
        "spec_decode_num_accepted_tokens_total",
    ):  # fmt: skip
        assert f"diastole_{name}" in asked


def test_panels_are_whole() -> None:
    ids = [p["id"] for p in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
            references = [t["refId"] for t in panel["targets"]]
            assert len(references) == len(set(references))
            assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"])
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "model"]


def test_the_example_scrapes_the_default_address() -> None:
    from diastole.config import ServerConfig

    text = (OPS / "prometheus" / "prometheus.yml").read_text("utf-8")
    assert f'targets: ["{ServerConfig().host}:{ServerConfig().port}"]' in text
    assert "metrics_path: /metrics" in text
