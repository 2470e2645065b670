"""A server under a load, over loopback: one that does as it is told, one that does not, and Diastole's own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from diastole.bench.load import remote
from diastole.bench.load.arrivals import Closed, Open
from diastole.bench.load.judge import judge
from diastole.bench.load.remote import Remote
from diastole.bench.load.work import Wish
from diastole.types import SLO, UserError
from serve.fakes import Running

GOOD, REFUSED, BROKEN, CUT, SILENT, JUNK, LONG, FAULT, HANGS, WAITS, WAKES, ENDED, ODD = range(
    13
)  # what a prompt begins with


class Ready(Running):
    """Diastole's own server, with an echo for an engine."""

    def __enter__(self) -> Ready:
        super().__enter__()
        deadline = time.monotonic() + 10
        while not self.backend.ready():
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.005)
        return self


class Server(ThreadingHTTPServer):
    """Does what the first token of a prompt says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.woken, self.over = threading.Event(), threading.Event()
        self.models: Any = {"data": [{"id": "m", "max_model_len": 99}, {"id": "n"}]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(200, json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may be told to leave
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        kind = body["prompt"][0] if "prompt" in body else GOOD
        if kind == REFUSED:
            return self._reply(429, b'{"error": {"message": "too many requests", "code": "busy"}}')
        if kind == WAKES:
            self.server.woken.set()
        if kind == WAITS and not self.server.woken.wait(10):
            return self._reply(500, b"nobody came while this one waited")
        self.send_response(200)
        if kind == CUT:
            self.send_header("content-length", "100000")
        self.end_headers()
        if kind == HANGS:
            self.server.over.wait(20)
            return None
        for _ in range(1 if kind in (BROKEN, CUT, FAULT) else body["max_tokens"]):
            self._say({"choices": [{"index": 0, "text": " a", "delta": {"content": " a"}, "finish_reason": None}]})
        if kind in (BROKEN, CUT):
            return None
        if kind == JUNK:
            self._write(b'data: {"choices": 3}\n\n')
        if kind == LONG:
            self._write(b"data: " + b"x" * 4000 + b"\n\n")
        if kind == FAULT:
            self._say({"error": {"message": "no memory"}})
        self._say({"choices": [{"index": 0, "text": "", "finish_reason": "error" if kind == ENDED else "length"}]})
        if kind != SILENT:
            tokens = -3 if kind == ODD else 2 * body["max_tokens"]
            usage = {"prompt_tokens": 8, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 4}}
            self._say({"choices": [], "usage": usage})
        self._write(b": a comment\r\ndata: [DONE]\r\n\r\n")
        return None

    def _say(self, event: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join(10)


def wishes(*kinds: int, output: int = 3) -> list[Wish]:
    return [Wish([k, 5, 6], output) for k in kinds]


def test_answers_are_timed_and_counted(server: Server) -> None:
    to = Remote(server.url, key="secret")
    assert (to.model, to.context) == ("m", 99)
    told: list[int] = []
    run = to.run(wishes(GOOD, GOOD), Open([0.0, 0.01]), SLO(0.5, 0.025), told.append)
    for t in run.timelines:
        assert (t.error, t.finish, t.tokens, t.told, t.cached, t.prompt) == (None, "length", 6, True, 4, 8)
        assert len(t.times) == 3
        assert t.arrival < t.times[0] <= t.times[1] <= t.times[2] <= run.seconds
        assert t.late >= 0
    assert run.timelines[1].arrival >= 0.01
    assert told[-1] == 2
    path, body, headers = server.asked[0]
    assert path == "/v1/completions"
    assert body["prompt"] == [0, 5, 6]
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("m", 3, True, True)
    assert headers["authorization"] == "Bearer secret"
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tpot-ms"]) == ("500.000", "25.000")


def test_ways_of_asking(server: Server) -> None:
    for send, want in (
        ("text", ("/v1/completions", "prompt", "<0 5 6>")),
        ("chat", ("/v1/chat/completions", "messages", [{"role": "user", "content": "<0 5 6>"}])),
    ):
        server.asked.clear()
        to = Remote(server.url, "n", send, lambda ids: f"<{' '.join(map(str, ids))}>", ignore_eos=False)
        server_kind = wishes(GOOD) if send == "chat" else []
        run = to.run(server_kind, Closed(1))
        assert all(t.error is None for t in run.timelines)
        body = json.loads(to._body(wishes(GOOD)[0]))
        assert (to._path, body[want[1]]) == (want[0], want[2])
        assert "ignore_eos" not in body
        assert body["model"] == "n"
    assert server.asked[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (REFUSED, "refused: 429 too many requests"),
        (BROKEN, "the answer broke off"),
        (CUT, "the connection failed: RemoteProtocolError"),
        (JUNK, "an event is no chunk of an answer"),
        (LONG, "the server sent more than an answer can be"),
        (FAULT, "the server stopped"),
        (ENDED, "the server ended it: error"),
        (ODD, "an event is no chunk of an answer: Expected `int` >= 0"),
    ],
)
def test_what_goes_wrong_is_not_good_and_no_crash(
    server: Server, kind: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LINE", 2000)
    run = Remote(server.url).run(wishes(kind, GOOD), Open([0.0, 0.0]))
    bad, good = run.timelines
    assert bad.error is not None
    assert bad.error.startswith(why)
    assert good.error is None
    v = judge(run, SLO(30.0, 30.0))
    assert (v.good, v.attainment) == (1, 0.5)
    assert [*v.failures] == [bad.error]


def test_a_whole_answer_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER", 1000)
    run = Remote(server.url).run(wishes(GOOD, output=40), Closed(1))
    assert run.timelines[0].error == "the server sent more than an answer can be"


def test_tokens_that_nobody_counts_are_pieces(server: Server) -> None:
    run = Remote(server.url).run(wishes(SILENT), Closed(1))
    (t,) = run.timelines
    assert (t.tokens, t.told, t.error) == (3, False, None)
    assert judge(run, SLO(30.0, 30.0)).guessed == 1


def test_what_hangs_is_given_up(server: Server) -> None:
    run = Remote(server.url, patience=0.2).run(wishes(HANGS, HANGS), Open([0.0, 0.0]))
    assert [t.error for t in run.timelines] == ["it took more than 0.2 s"] * 2


def test_open_arrivals_wait_for_no_answer(server: Server) -> None:
    """The first is answered only when the second has come."""
    run = Remote(server.url).run(wishes(WAITS, WAKES), Open([0.0, 0.02]))
    assert [t.error for t in run.timelines] == [None, None]


def test_clients_wait_for_theirs(server: Server) -> None:
    run = Remote(server.url).run(wishes(*[GOOD] * 8), Closed(2))
    assert all(t.error is None and t.late == 0 for t in run.timelines)
    for t in run.timelines:
        assert sum(o.arrival <= t.arrival < o.times[-1] for o in run.timelines) <= 2


def test_a_wrong_server_is_named(server: Server) -> None:
    with pytest.raises(UserError, match="it has m, n"):
        Remote(server.url, "other")
    with pytest.raises(UserError, match="--send must be one of ids, text, chat"):
        Remote(server.url, send="voice")
    server.models = {"data": []}
    with pytest.raises(UserError, match="it has none"):
        Remote(server.url)
    for wrong in ([], {"data": [{"id": 3}]}, "x"):
        server.models = wrong
        with pytest.raises(UserError, match="no server with OpenAI's API answers"):
            Remote(server.url)
    for url in ("http://127.0.0.1:9", "nonsense", "http://[::", "ftp://x"):
        with pytest.raises(UserError, match="no server with OpenAI's API answers"):
            Remote(url)


def test_our_own_server() -> None:
    with Ready() as running:
        to = Remote(running.url)
        assert to.context == 4096
        run = to.run([Wish([65, 66, 67, 68], 3), Wish([65] * 4096, 3), Wish([97, 98], 2)], Closed(1))
        one, refused, other = run.timelines
        assert (one.error, one.tokens, len(one.times), one.prompt, one.cached) == (None, 3, 3, 4, 2)
        assert refused.error is not None
        assert refused.error.startswith("refused: 400 ")
        assert (other.error, other.tokens) == (None, 2)
        assert running.service.asked[0].slo is None
        to.run([Wish([65, 66], 1)], Closed(1), SLO(0.25, 0.05))
        assert running.service.asked[-1].slo == SLO(0.25, 0.05)
        running.service.fault_after = 1
        broken = to.run([Wish([65, 66, 67], 3)], Closed(1)).timelines[0]
        assert broken.error is not None
        assert broken.error.startswith("the server stopped")
