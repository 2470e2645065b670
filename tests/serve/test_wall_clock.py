"""A wall clock that is set back or forth by a day moves nothing but the times that people read."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import diastole
from diastole.clock import RealClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.types import SLO, Ended
from engine.toy import request, run, toy_service
from serve.fakes import Running
from serve.test_chat import HELLO, URL, wait_ready

DAY = 86_400.0
# Who may ask what day it is, and what for.
STAMPS = {
    "frontend/backend.py": "since when a model is served",
    "frontend/voice.py": "today's date in a chat template",
    "reproduce/harness.py": "when a result was measured",
    "serve/embeddings.py": "when an answer was made",
    "serve/images.py": "when an answer was made",
    "serve/generate.py": "when an answer was made",
    "serve/livesession.py": "when an event was told",
    "serve/streams.py": "when an error was told",
    "serve/tracing.py": "when a span ended; how long it took is measured elsewhere",
}
WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"}


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A wall clock that is a day off in another direction each time it is read; the times that it told."""
    told: list[float] = []
    steps, real = itertools.cycle((DAY, -DAY, 0.0, 400 * DAY)), time.time

    def jumps() -> float:
        told.append(real() + next(steps))
        return told[-1]

    monkeypatch.setattr(time, "time", jumps)
    yield told
    assert told, "nobody read the clock: the test shows nothing"


def reads_wall_clock(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "time" and WALL & {a.name for a in node.names}:
            return True
        if isinstance(node, ast.Attribute) and node.attr in WALL:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner in {"time", "datetime", "date"}:
                return True
    return False


def test_only_stamps_are_taken_from_the_wall_clock() -> None:
    assert reads_wall_clock("import time\nstart = time.time()")
    assert reads_wall_clock("from time import time")
    assert not reads_wall_clock("import time\nstart = time.monotonic()")
    root = Path(diastole.__file__).parent
    found = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if reads_wall_clock(p.read_text("utf-8"))}
    assert found == STAMPS.keys()


def test_quotas_neither_refill_nor_starve(jumping: list[float]) -> None:
    with Running(requests_per_minute=3) as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        replies = [http.post(URL, json=HELLO) for _ in range(5)]
        assert [r.status_code for r in replies] == [200, 200, 200, 429, 429]
        assert all(1 <= int(r.headers["retry-after"]) <= 20 for r in replies[3:])
        created = [r.json()["created"] for r in replies[:3]]
        assert max(created) - min(created) > DAY / 2  # they did see the clock jump


def test_ceilings_and_latencies_are_spans(jumping: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diastole.serve"), Running(max_seconds=0.4) as server:
        wait_ready(server)
        server.service.endless, server.service.pace = True, 0.01
        began = time.monotonic()
        text = httpx.post(server.url + URL, json={**HELLO, "stream": True}, timeout=20).text
        assert time.monotonic() - began >= 0.4
        chunks = [json.loads(x.removeprefix("data: ")) for x in text.split("\n\n") if x.startswith("data: {")]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert sum(bool(c["choices"][0]["delta"].get("content")) for c in chunks) > 1
    (fields,) = [r.fields for r in caplog.records if getattr(r, "fields", {}).get("route") == URL]
    assert 0.01 <= fields["ttft"] < fields["seconds"] < DAY / 2
    assert fields["tpot"] > 0


def test_deadlines_and_meters_of_the_engine(jumping: list[float]) -> None:
    service = toy_service(context=30_000, pages=600)
    engine = Engine([service], RealClock(), LeastSlack())
    engine.add(replace(request("a", [1, 2, 3], 25_000, ignore_eos=True), slo=SLO(total=0.3)))
    time.time()
    began = time.monotonic()
    events = run(engine, 10**6)
    assert time.monotonic() - began >= 0.25
    assert events[-1].data == Ended("deadline")
    assert len(events) > 2
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert 0 < service.meter.histograms[name].sum < DAY / 2
