"""The console's files and the engine's trace over HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import diastole.serve
from diastole.engine.trace import granted
from diastole.serve import trace
from diastole.types import Event, Grant, Request, Stream
from serve.fakes import FakeBackend, Running
from serve.test_chat import HELLO, URL, wait_ready

FILES = sorted(p.name for p in (Path(diastole.serve.__file__).parent / "console").iterdir() if p.name != "index.html")


def test_the_page_and_its_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert not re.search(r"<script>|<style|\son\w+=|style=|https?://", page.text)  # nothing that the policy would stop


@pytest.mark.parametrize("name", FILES)
def test_every_part_is_served_as_what_it_is(http: httpx.Client, name: str) -> None:
    part = http.get(f"/console/{name}")
    assert part.status_code == 200
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert part.headers["content-type"].split(";")[0] == kinds[Path(name).suffix]
    imported = re.findall(r'from "\./([\w.]+)"', part.text)
    assert set(imported) <= set(FILES)
    assert "innerHTML" not in part.text
    assert len(part.text.splitlines()) <= 400


def test_all_that_the_page_names_is_there(http: httpx.Client) -> None:
    named = re.findall(r'(?:href|src)="console/([\w.]+)"', http.get("/").text)
    assert set(named) <= set(FILES)


def test_what_did_not_change_is_not_sent_again(http: httpx.Client) -> None:
    tag = http.get("/console/main.js").headers["etag"]
    for given in (tag, f'"other", W/{tag}'):
        again = http.get("/console/main.js", headers={"if-none-match": given})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
    assert http.get("/console/main.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert http.head("/console/main.js").headers["etag"] == tag


def fill(backend: FakeBackend, steps: int) -> None:
    stream = Stream(Request("chatcmpl-secret-0badcafe", "echo", None, None), 0, known=9)
    for i in range(steps):
        said = [Event(stream.req.id, 0, None, False, i + 0.25)]
        backend.steps.ran("echo", float(i), 0.25, granted([Grant(stream, 9)]), said)


def test_trace() -> None:
    with Running() as server, httpx.Client(base_url=server.url, timeout=10) as http:
        wait_ready(server)
        fill(server.backend, 3)
        whole = http.get("/engine/trace").json()
        assert whole["last"] == 3
        assert whole["steps"][0] == {
            "seq": 1,
            "began": 0.0,
            "took": 0.25,
            "service": "echo",
            "streams": [["0badcafe", 0, "prefill", 9, 1]],
        }
        assert whole["services"]["echo"]["pages"] == 16
        assert [s["seq"] for s in http.get("/engine/trace?since=2").json()["steps"]] == [3]
        assert http.get("/engine/trace").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("since", ["-1", "x", "", "1.5", "1e3", "٣", "9" * 17, "9" * 5000, "9" * 16, "1&since=2"])
def test_since_must_be_a_step(http: httpx.Client, since: str) -> None:
    reply = http.get(f"/engine/trace?since={since}")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "since"


def test_keys_guard_the_trace_and_not_the_page() -> None:
    with Running(api_key=("right",)) as server, httpx.Client(base_url=server.url, timeout=10) as http:
        wait_ready(server)
        assert http.get("/").status_code == 200
        assert http.get("/console/main.js").status_code == 200
        assert http.get("/console/nothing.js").status_code == 401
        refused = http.get("/engine/trace")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/engine/trace", headers={"authorization": "Bearer right"}).status_code == 200


def test_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "ANSWER_SECONDS", 0.05)
    with Running() as server, httpx.Client(base_url=server.url, timeout=10) as http:
        wait_ready(server)
        server.backend.deaf = True
        reply = http.get("/engine/trace")
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "overloaded"
        assert http.post(URL, json=HELLO).status_code == 200


def test_before_the_model_is_loaded() -> None:
    backend = FakeBackend(loading=True)
    with Running(backend) as server, httpx.Client(base_url=server.url, timeout=10) as http:
        assert http.get("/").status_code == 200  # the page says that the model is loading
        reply = http.get("/engine/trace")
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "model_loading"
        backend.finish_loading()
