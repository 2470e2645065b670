"""Requests are listed while they run, and end when their owner says so; nobody else's do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from serve.fakes import Running
from serve.test_bad_input import error
from serve.test_chat import HELLO, URL, events, wait_ready
from serve.test_limits import head
from serve.test_shutdown import Asking

Eventually = Callable[[Callable[[], object]], None]
METHODS = [("DELETE", "/v1/requests/{}"), ("POST", "/v1/requests/{}/cancel")]


@pytest.fixture
def endless(server: Running) -> Running:
    server.service.endless = True
    server.service.pace = 0.01
    return server


def listed(http: httpx.Client, **headers: str) -> list[dict]:
    reply = http.get("/v1/requests", headers=headers).json()
    assert reply["object"] == "list"
    return reply["data"]


@contextmanager
def streaming(server: Running, http: httpx.Client, **headers: str) -> Iterator[tuple[str, Iterator[str]]]:
    """An endless answer: its id, and its lines from the second event on."""
    with http.stream("POST", URL, json={**HELLO, "stream": True}, headers=headers) as reply:
        lines = reply.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        yield json.loads(first.removeprefix("data: "))["id"], lines


@pytest.mark.parametrize(("method", "path"), METHODS)
@pytest.mark.parametrize("whole_id", [True, False])
def test_a_stream_ends_with_an_error_event(
    endless: Running, http: httpx.Client, eventually: Eventually, method: str, path: str, whole_id: bool
) -> None:
    with streaming(endless, http) as (id, lines):
        eventually(lambda: listed(http)[0]["completion_tokens"] > 2)
        told = listed(http)[0]
        assert told["object"] == "request"
        assert (told["id"], told["model"]) == (id, "echo")
        assert told["age_seconds"] > 0
        reply = http.request(method, path.format(id if whole_id else id.removeprefix("chatcmpl-")))
        assert reply.status_code == 200
        assert reply.json() == {"object": "request", "id": id, "status": "cancelled"}
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    assert rest[-1] == "data: [DONE]"
    assert endless.service.aborted == [id]
    assert listed(http) == []
    again = http.request(method, path.format(id))
    assert again.status_code == 404
    assert error(again)["code"] == "request_not_found"
    eventually(lambda: endless.server.gate.inside == 0)


def test_whole_answers_and_several_prompts_end_too(
    endless: Running, http: httpx.Client, eventually: Eventually
) -> None:
    asking = Asking(endless.url)
    several: list[httpx.Response] = []
    body = {"model": "echo", "prompt": ["a", "b", "c"]}
    thread = threading.Thread(target=lambda: several.append(http.post("/v1/completions", json=body)))
    thread.start()
    eventually(lambda: len(endless.service.spoken) == 4)
    ids = [r["id"] for r in listed(http)]
    assert sorted(id.split("-")[0] for id in ids) == ["chatcmpl", "cmpl"]
    for id in ids:
        assert http.delete(f"/v1/requests/{id}").status_code == 200
    thread.join(10)
    for reply in (asking.answer(), several[0]):
        assert reply.status_code == 499
        assert error(reply)["code"] == "request_cancelled"
    assert len(endless.service.aborted) == 4
    assert listed(http) == []


def test_before_the_first_token(server: Running, http: httpx.Client, eventually: Eventually) -> None:
    server.service.pace = 600
    asking = Asking(server.url, stream=True)
    eventually(lambda: listed(http))
    assert http.delete(f"/v1/requests/{listed(http)[0]['id']}").status_code == 200
    reply = asking.answer()
    assert reply.status_code == 499  # nothing was sent yet, so it can still have a status of its own
    assert len(server.service.aborted) == 1


def test_a_reader_that_does_not_read(endless: Running, http: httpx.Client, eventually: Eventually) -> None:
    endless.service.wide = 200_000
    body = json.dumps({**HELLO, "stream": True}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", endless.server.port))
        s.sendall(head(Content_Length=len(body)) + body)
        eventually(lambda: listed(http))
        assert http.delete(f"/v1/requests/{listed(http)[0]['id']}").status_code == 200
        eventually(lambda: not endless.service.running)  # although the last event cannot be sent yet


def test_others_go_on(server: Running, http: httpx.Client, eventually: Eventually) -> None:
    server.service.pace = 0.05
    stays = Asking(server.url, stream=True)
    eventually(lambda: len(server.service.running) == 1)
    with streaming(server, http) as (id, lines):
        assert http.delete(f"/v1/requests/{id}").status_code == 200
        assert "request_cancelled" in "".join(lines)
    assert events(stays.answer().text)[-1]["choices"][0]["finish_reason"] == "stop"
    assert server.service.aborted == [id]


@pytest.mark.parametrize(
    "id",
    ["nothing", "chatcmpl-", "chatcmpl", "-", "%00", "..", "cmpl-{bare}", "x_{bare}", "{short}", "{bare}0", "x" * 999],
)
def test_unknown_ids(endless: Running, http: httpx.Client, id: str) -> None:
    with streaming(endless, http) as (running, _):
        bare = running.removeprefix("chatcmpl-")
        reply = http.request("DELETE", "/v1/requests/" + id.format(bare=bare, short=bare[:-1]))
        assert reply.status_code in (404, 405)
        assert len(listed(http)) == 1


def test_a_key_sees_and_cancels_only_its_own(eventually: Eventually) -> None:
    with Running(api_key=("one", "two")) as server, httpx.Client(base_url=server.url, timeout=10) as http:
        wait_ready(server)
        server.service.endless = True
        server.service.pace = 0.01
        one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        with streaming(server, http, **one) as (id, lines):
            assert [r["id"] for r in listed(http, **one)] == [id]
            assert listed(http, **two) == []
            for method, path in METHODS:
                other = http.request(method, path.format(id), headers=two)
                unknown = http.request(method, path.format("chatcmpl-" + "0" * 24), headers=two)
                assert other.status_code == unknown.status_code == 404
                assert other.text.replace(id, "ID") == unknown.text.replace("chatcmpl-" + "0" * 24, "ID")
                assert http.request(method, path.format(id)).status_code == 401
            assert http.get("/v1/requests").status_code == 401
            assert http.delete(f"/v1/requests/{id}", headers=one).status_code == 200
            assert "request_cancelled" in "".join(lines)


def test_it_works_when_the_server_is_full(eventually: Eventually) -> None:
    with Running(max_queued=1) as server, httpx.Client(base_url=server.url, timeout=10) as http:
        wait_ready(server)
        server.service.endless = True
        server.service.pace = 0.01
        with streaming(server, http) as (id, _):
            assert http.post(URL, json=HELLO).status_code == 503
            assert http.post(f"/v1/requests/{id}/cancel").status_code == 200
        server.service.reset()
        eventually(lambda: http.post(URL, json=HELLO).status_code == 200)
