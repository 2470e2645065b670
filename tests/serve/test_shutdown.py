"""Going down: drain, abort, signals to a real process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import diastole
from diastole.serve.run import Server
from diastole.types import UserError
from serve.fakes import FakeBackend, Running, config
from serve.test_bad_input import error
from serve.test_chat import HELLO, URL, events, wait_ready

Eventually = Callable[[Callable[[], object]], None]


class Asking:
    """A request on a thread."""

    def __init__(self, url: str, **fields: Any) -> None:
        self.reply: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(url, fields), daemon=True)
        self._thread.start()

    def _run(self, url: str, fields: dict[str, Any]) -> None:
        self.reply = httpx.post(url + URL, json={**HELLO, **fields}, timeout=30)

    def answer(self) -> httpx.Response:
        self._thread.join(30)
        assert self.reply is not None, "there was no answer"
        return self.reply


def test_running_requests_finish_and_new_ones_are_refused(eventually: Eventually) -> None:
    with Running(drain_seconds=600) as server:
        wait_ready(server)
        server.service.stalls = True
        asking = [Asking(server.url, stream=True), Asking(server.url)]
        eventually(lambda: len(server.service.spoken) == 2)
        server.stop()
        eventually(lambda: server.server.gate.draining)
        late = httpx.post(server.url + URL, json=HELLO)
        assert late.status_code == 503
        assert error(late)["code"] == "shutting_down"
        assert "retry-after" in late.headers
        assert httpx.get(server.url + "/ready").status_code == 503
        assert httpx.get(server.url + "/health").status_code == 200
        server.service.stalls = False
        streamed, whole = (a.answer() for a in asking)
        assert events(streamed.text)[-1]["choices"][0]["finish_reason"] == "stop"
        assert whole.json()["choices"][0]["message"]["content"] == HELLO["messages"][0]["content"]
        server.join()
        assert server.error is None
        assert server.backend.stopped == 0
        assert server.service.aborted == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/health")


@pytest.mark.parametrize("twice", [False, True])
def test_the_rest_is_aborted_with_an_error(eventually: Eventually, twice: bool) -> None:
    with Running(drain_seconds=600 if twice else 0.2) as server:
        wait_ready(server)
        server.service.endless = True
        server.service.pace = 0.02
        asking = [Asking(server.url, stream=True), Asking(server.url)]
        eventually(lambda: len(server.service.spoken) == 2)
        server.stop()
        if twice:
            eventually(lambda: server.server.gate.draining)
            server.stop()
        streamed, whole = (a.answer() for a in asking)
        *sent, last = events(streamed.text)
        assert last["error"]["code"] == "shutting_down"
        assert last["error"]["type"] == "overloaded_error"
        assert all(e["choices"][0]["finish_reason"] is None for e in sent)
        assert whole.status_code == 503
        assert error(whole)["code"] == "shutting_down"
        server.join()
        assert server.error is None
        assert len(server.service.aborted) == 2


def test_stop_while_loading() -> None:
    with Running(FakeBackend(loading=True)) as server:
        httpx.get(server.url + "/health")
        server.stop()
        server.join()
        assert server.error is None
        assert server.said == []


def test_a_backend_that_cannot_start() -> None:
    backend = FakeBackend()
    backend.failure = UserError("no such model", param="service.model")
    with Running(backend) as server:
        server.join()
        assert server.error is backend.failure


def test_addresses_that_cannot_be_bound() -> None:
    server = Server(FakeBackend(), config())
    with server._socket:
        assert server._socket.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's delay on
        with pytest.raises(UserError, match="choose another port") as taken:
            Server(FakeBackend(), config(port=server.port))
        assert taken.value.param == "server.port"
    with pytest.raises(UserError, match="no address") as nowhere:
        Server(FakeBackend(), config(host="no.such.host.invalid"))
    assert nowhere.value.param == "server.host"


@contextmanager
def process(drain: float, pace: float, **settings: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    tests, src = Path(__file__).parents[1], Path(diastole.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(src)])}
    command = [sys.executable, "-m", "serve.fakes", str(drain), str(pace), json.dumps(settings)]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        banner = child.stderr.readline()
        assert "is ready at http://127.0.0.1:" in banner
        yield child, banner.split(" ready at ")[1].split("/v1")[0]
    finally:
        child.kill()
        child.wait()
        if child.stderr is not None:
            child.stderr.close()


def first_text(lines: Iterator[str]) -> None:
    for line in lines:
        if '"content":"' in line and '"role"' not in line:
            return
    raise AssertionError("no text came")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains(number: signal.Signals) -> None:
    with (
        process(drain=20, pace=0.02) as (child, url),
        httpx.stream("POST", url + URL, json={**HELLO, "stream": True}, timeout=20) as reply,
    ):
        lines = reply.iter_lines()
        first_text(lines)
        child.send_signal(number)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
        assert child.wait(20) == 0


def test_two_signals_abort() -> None:
    with (
        process(drain=600, pace=0.5) as (child, url),
        httpx.stream("POST", url + URL, json={**HELLO, "stream": True}, timeout=20) as reply,
    ):
        lines = reply.iter_lines()
        first_text(lines)
        child.send_signal(signal.SIGTERM)
        while httpx.get(url + "/ready").status_code != 503:
            pass
        child.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert child.wait(20) == 0
        assert child.stderr is not None
        said = child.stderr.read()
        assert "method=POST route=/v1/chat/completions status=200" in said
        assert "aborting 1 requests" in said
        assert "Traceback" not in said
