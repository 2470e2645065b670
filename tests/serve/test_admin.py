"""Who may reload a service, and what they are told; SIGHUP."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from diastole.types import UserError
from serve.fakes import Running
from serve.test_bad_input import error
from serve.test_chat import wait_ready
from serve.test_shutdown import process

URL = "/admin/services/echo/reload"


@pytest.fixture
def server(server: Running) -> Running:
    server.backend.reloads.clear()
    server.backend.reload_failure = None
    return server


def test_reload_by_name_and_alias_with_and_without_changes(server: Running, http: httpx.Client) -> None:
    reply = http.post(URL, json={"weights": "q8"})
    assert reply.status_code == 200
    assert reply.json() == {"object": "service", "name": "echo", "max_model_len": 4096, "status": "reloaded"}
    empty = http.post("/admin/services/parrot/reload", headers={"content-type": "application/json"})
    assert empty.status_code == 200
    assert server.backend.reloads == [("echo", {"weights": "q8"}), ("echo", {})]


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"host": "evil.example"}, b"{}", 421, "host_not_allowed"),  # a name that was made to point here
        ({"x-forwarded-for": "10.0.0.1"}, b"{}", 403, "admin_not_allowed"),
        ({"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type"),  # what any web page may send
        ({}, b"[]", 400, "invalid_type"),
        ({}, b"{", 400, "invalid_json"),
    ],
)
def test_who_and_what_is_refused(
    server: Running, http: httpx.Client, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    reply = http.post(URL, content=body, headers={"content-type": "application/json", **headers})
    assert (reply.status_code, error(reply)["code"]) == (status, code)
    assert http.post("/admin/services/other/reload", json={}).status_code == 404
    assert server.backend.reloads == []


def test_a_name_that_the_server_may_have_administers_nothing() -> None:
    with Running(allowed_hosts=("chat.example.org",)) as server:
        wait_ready(server)
        for host, status in (("chat.example.org", 403), ("localhost:1", 200)):
            assert httpx.post(server.url + URL, json={}, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (UserError("service.echo.weights must be one of q8, q4", param="service.echo.weights"), 400),
        (UserError("no room", code="not_enough_memory"), 503),
        (UserError("it is being reloaded", code="reload_running"), 409),
        (UserError("loading failed: OSError: gone", code="reload_failed"), 500),
    ],
)
def test_why_it_failed_is_told(server: Running, http: httpx.Client, failure: UserError, status: int) -> None:
    server.backend.reload_failure = failure
    reply = http.post(URL, json={})
    assert reply.status_code == status
    assert error(reply)["message"] == failure.message
    server.backend.reload_failure = None


def test_with_keys_a_key_with_the_right_is_needed_and_enough(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    lines = [f"{name}:sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("boss", "guest")]
    keys.write_text(f"{lines[0]}:admin\n{lines[1]}\n")
    with Running(api_key=("key",), api_key_file=str(keys)) as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        far: dict[str, Any] = {"host": "behind.a.proxy", "x-forwarded-for": "10.0.0.1"}
        assert http.post(URL, json={}).status_code == 401
        for key, status in (("boss", 200), ("guest", 403), ("key", 403)):
            reply = http.post(URL, json={}, headers={**far, "authorization": f"Bearer {key}"})
            assert reply.status_code == status


def test_sighup_reloads_everything_and_stops_nothing() -> None:
    with process(drain=1, pace=0) as (child, url):
        child.send_signal(signal.SIGHUP)
        assert child.stderr is not None
        assert any("echo was loaded anew" in line for line in child.stderr)
        assert httpx.get(url + "/ready").status_code == 200
