"""Priorities of requests on their way to the engine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from serve.fakes import Running
from serve.test_chat import HELLO, URL, wait_ready


@pytest.fixture(scope="module")
def ranked() -> Iterator[Running]:
    with Running() as server:
        wait_ready(server)
        yield server


@pytest.mark.parametrize(
    ("body", "header", "priority"),
    [
        ({}, None, 0),
        ({"priority": -7}, None, -7),
        ({}, "12", 12),
        ({"priority": 0}, "12", 0),
        ({"priority": None}, "3", 3),
    ],
)
def test_body_and_header(ranked: Running, body: dict[str, int], header: str | None, priority: int) -> None:
    ranked.service.reset()
    headers = {} if header is None else {"x-priority": header}
    for path, more in ((URL, HELLO), ("/v1/completions", {"model": "echo", "prompt": "x"})):
        for counts in (True, False):
            ranked.service.priorities = counts
            reply = httpx.post(ranked.url + path, json={**more, **body}, headers=headers)
            if counts or priority == 0:
                assert reply.status_code == 200
                assert ranked.service.asked[-1].priority == priority
            else:
                error = reply.json()["error"]
                named = "priority" if "priority" in body and body["priority"] is not None else "x-priority"
                assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", named)
                assert "engine.admission = 'priority'" in error["message"]


@pytest.mark.parametrize("header", ["high", "1.5", "", "99999", "-1001", "٣", "9" * 5000])
def test_wrong_headers(ranked: Running, header: str) -> None:
    reply = httpx.post(ranked.url + URL, json=HELLO, headers={"x-priority": header.encode()})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-priority")
