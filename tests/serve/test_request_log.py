"""The line in the log for each request: what it says, and what it must never say."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve.fakes import Running
from serve.test_chat import HELLO, URL
from serve.test_shutdown import process

SECRETS = ("secret-prompt", "secret-key", "secret-salt", "secret-query", "secret-header")


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, eventually: Callable[[Callable[[], object]], None]
) -> Callable[[], dict[str, Any]]:
    """Waits for the one line that there is: it comes a moment after the answer."""
    caplog.set_level(logging.INFO, "diastole.serve")

    def line() -> dict[str, Any]:
        eventually(lambda: fields(caplog))
        (only,) = fields(caplog)
        return only

    return line


def test_json_on_standard_error_without_secrets() -> None:
    messages = [{"role": "user", "content": "secret-prompt"}]
    with process(5, 0.0, log_format="json", api_key=["secret-key"]) as (child, url):
        headers = {"Authorization": "Bearer secret-key", "Cookie": "secret-header"}
        with httpx.Client(base_url=url, headers=headers) as http:
            body = {"model": "parrot", "messages": messages, "max_tokens": 20, "cache_salt": "secret-salt"}
            assert http.post(URL, json=body).status_code == 200
            assert http.post(URL, json={**body, "messages": [{"role": "secret-prompt"}]}).status_code == 400
            assert http.get("/v1/nowhere%0a{}%1b[2J", params={"q": "secret-query"}).status_code == 404
            assert http.get("/version", headers={"Authorization": "Bearer secret-query"}).status_code == 401
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        assert child.stderr is not None
        said = child.stderr.read()
    assert not [s for s in SECRETS if s in said]
    assert said.isascii()
    lines = [json.loads(line) for line in said.splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [r["status"] for r in requests] == [200, 400, 404, 401]
    answered = requests[0]
    assert answered["route"] == URL
    assert answered["method"] == "POST"
    assert answered["model"] == "echo"
    assert (answered["prompt_tokens"], answered["cached_tokens"], answered["completion_tokens"]) == (14, 7, 13)
    assert answered["max_tokens"] == 20
    assert answered["finish"] == "stop"
    assert 0 < answered["ttft"] <= answered["seconds"] < 20
    assert len(answered["id"]) == 24
    assert requests[2]["route"].startswith("/v1/nowhere\n{}")


def test_choices_end_in_their_own_ways(
    http: httpx.Client, server: Running, logged: Callable[[], dict[str, Any]]
) -> None:
    body = {"model": "echo", "prompt": ["ab", "abcdef"], "n": 2, "max_tokens": 5}
    assert http.post("/v1/completions", json=body).status_code == 200
    line = logged()
    assert line["finish"] == "length,length,length,length"
    assert line["choices"] == 4
    assert line["completion_tokens"] == 20
    assert line["tpot"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_logged_as_499(
    server: Running,
    logged: Callable[[], dict[str, Any]],
    stream: bool,
) -> None:
    server.service.endless = True
    server.service.pace = 0.01
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", server.url + URL, json={**HELLO, "stream": stream}, timeout=0.3) as reply,
    ):
        next(reply.iter_lines())
    line = logged()
    assert (line["status"], line["finish"]) == (499, "abort")
    assert line["completion_tokens"] > 0


def test_a_fault_is_logged_as_error(http: httpx.Client, server: Running, logged: Callable[[], dict[str, Any]]) -> None:
    server.service.fault_after = 3
    assert http.post(URL, json=HELLO).status_code == 500
    line = logged()
    assert (line["status"], line["finish"], line["completion_tokens"]) == (500, "error", 3)


def test_probes_are_quiet(http: httpx.Client, logged: Callable[[], dict[str, Any]]) -> None:
    for path in ("/health", "/ready", "/metrics", "/version"):
        http.get(path)
    assert logged()["route"] == "/version"
