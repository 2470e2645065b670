"""Ceilings: whatever a request asks for, it gets no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from serve.fakes import CONTEXT, Running
from serve.test_chat import HELLO, URL, wait_ready

COMPLETIONS = "/v1/completions"
PLAIN = {"model": "echo", "prompt": "x" * 40}


@pytest.fixture
def capped() -> Iterator[Running]:
    with Running(max_tokens=10) as server:
        wait_ready(server)
        yield server


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_than_the_cap_is_refused(capped: Running, name: str) -> None:
    reply = httpx.post(capped.url + URL, json={**HELLO, name: 11})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (name, "invalid_value")
    assert error["message"].startswith(f"{name} may be at most 10 on this server")
    assert httpx.post(capped.url + COMPLETIONS, json={**PLAIN, "max_tokens": 11}).status_code == 400
    assert capped.service.asked == []
    assert httpx.post(capped.url + URL, json={**HELLO, name: 10}).status_code == 200


def test_who_names_no_number_gets_the_cap(capped: Running) -> None:
    long = {**HELLO, "messages": [{"role": "user", "content": "x" * 40}]}
    for path, body in ((URL, long), (COMPLETIONS, PLAIN)):
        reply = httpx.post(capped.url + path, json=body).json()
        assert reply["usage"]["completion_tokens"] == 10
        assert reply["choices"][0]["finish_reason"] == "length"


def test_the_cap_does_not_lead_out_of_the_context() -> None:
    with Running(max_tokens=CONTEXT) as server:
        wait_ready(server)
        assert httpx.post(server.url + URL, json=HELLO).status_code == 200
        assert server.service.asked[0].params.max_tokens is None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("silent", [True, False])
def test_seconds(stream: bool, silent: bool, eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running(max_seconds=0.3) as server:
        wait_ready(server)
        server.service.endless = True
        server.service.pace = 1000.0 if silent else 0.01
        body: dict[str, Any] = {**HELLO, "n": 2, "stream": stream}
        if stream:
            lines = httpx.post(server.url + URL, json=body, timeout=20).text.split("\n\n")
            assert lines[-2] == "data: [DONE]"
            chunks = [json.loads(x.removeprefix("data: ")) for x in lines[:-2]]
            choices = [c["choices"][0] for c in chunks]
            said = any(c["delta"].get("content") for c in choices)
        else:
            choices = httpx.post(server.url + URL, json=body, timeout=20).json()["choices"]
            said = any(c["message"]["content"] for c in choices)
        finished = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
        assert finished == {0: "length", 1: "length"}
        assert said is not silent
        eventually(lambda: not server.service.running)
        assert len(server.service.aborted) == 1
        assert 'diastole_requests_limited_total{limit="seconds"} 1.0' in httpx.get(server.url + "/metrics").text


def test_who_is_quick_is_not_cut() -> None:
    with Running(max_seconds=60.0) as server:
        wait_ready(server)
        for path, body in ((URL, HELLO), (COMPLETIONS, {**PLAIN, "prompt": ["a", "b"], "n": 2})):
            choices = httpx.post(server.url + path, json=body).json()["choices"]
            assert {c["finish_reason"] for c in choices} == {"stop"}
        assert 'limit="seconds"} 0.0' in httpx.get(server.url + "/metrics").text
