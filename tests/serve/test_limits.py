"""Sizes and times: bodies, headers, slow and lying clients, on bare sockets."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from diastole.serve import exchange, protocol
from diastole.serve.errors import ApiError
from diastole.serve.limits import check
from serve.fakes import Running
from serve.test_bad_input import GOOD, error
from serve.test_chat import HELLO, URL, wait_ready

LIMIT = 10_000


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with Running(max_body_bytes=LIMIT) as server:
        wait_ready(server)
        yield server


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server.port), timeout=10)


def head(**headers: object) -> bytes:
    lines = [f"POST {URL} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def read_all(s: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):  # what came before it counts
        while part := s.recv(65536):
            got += part
    return got


def read_until(s: socket.socket, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        part = s.recv(65536)
        assert part, got
        got += part
    return got


def test_body_limit_is_exact(small: Running) -> None:
    body = json.dumps({**HELLO, "metadata": "x"}).encode()
    fill = LIMIT - len(body)
    for extra, status in ((0, 200), (1, 413)):
        full = json.dumps({**HELLO, "metadata": "x" * (fill + 1 + extra)}).encode()
        assert len(full) == LIMIT + extra
        reply = httpx.post(small.url + URL, content=full, headers={"content-type": "application/json"})
        assert reply.status_code == status
        if status == 413:
            assert error(reply)["code"] == "request_too_large"
            assert str(LIMIT) in error(reply)["message"]


def test_chunked_bodies_are_counted(small: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    reply = httpx.post(small.url + URL, content=chunks(), headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert error(reply)["code"] == "request_too_large"


def test_announced_size_is_refused_unread(small: Running) -> None:
    with connect(small) as s:
        s.sendall(head(Content_Length=10**12))
        answer = read_until(s, b'"request_too_large"}}')  # at once, though the connection stays for a moment
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_size_beyond_all_integers(small: Running) -> None:
    with connect(small) as s:
        s.sendall(head(Content_Length="9" * 40))
        assert read_until(s, b"}}").split(b" ")[1] in (b"400", b"413")


def test_lying_content_length(small: Running) -> None:
    with connect(small) as s:  # longer than announced: the rest is another request, and a bad one
        s.sendall(head(Content_Length=len(GOOD) - 5) + GOOD)
        assert b" 400 " in read_all(s).split(b"\r\n")[0]
    with connect(small) as s:  # shorter than announced, then gone
        s.sendall(head(Content_Length=len(GOOD) + 5) + GOOD)
    assert httpx.get(small.url + "/health").status_code == 200


@pytest.mark.parametrize("extra", [{"Content_Length": "-5"}, {"Content_Length": "abc"}])
def test_bad_framing(small: Running, extra: dict[str, str]) -> None:
    with connect(small) as s:
        s.sendall(head(**extra))
        answer = read_all(s)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_smuggling_is_refused(small: Running) -> None:
    with connect(small) as s:
        s.sendall(head(Content_Length=5, Transfer_Encoding="chunked") + b"0\r\n\r\n")
        assert read_all(s).startswith(b"HTTP/1.1 400 ")


def test_not_http(small: Running) -> None:
    with connect(small) as s:
        s.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert b"invalid_http" in read_all(s)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % i for i in range(300)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nBig: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nEndless: " + b"x" * 400_000,
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_headers_too_large(small: Running, sent: bytes) -> None:
    with connect(small) as s:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused before the end
            s.sendall(sent)
        answer = read_all(s)
    if answer or len(sent) < 100_000:  # a reset may overtake the answer to who is still sending
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


def test_many_requests_on_one_connection(small: Running) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nFill: " + b"x" * 8000 + b"\r\n\r\n"
    with connect(small) as s:
        for _ in range(20):  # the bound is per request
            s.sendall(one)
            assert read_until(s, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")


def test_pipelined_requests(small: Running) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(small) as s:
        s.sendall(one * 4 + b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = read_all(s)
    assert answer.count(b"HTTP/1.1 200") == 5


def test_slow_headers(small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with connect(small) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHo")
        answer = read_all(s)
    assert answer.startswith(b"HTTP/1.1 408 ")
    with connect(small) as s:
        assert read_all(s) == b""  # said nothing, is told nothing


def test_slow_body(small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(exchange, "SWALLOW_SECONDS", 0.1)
    with connect(small) as s:
        s.sendall(head(Content_Length=100) + b"{")
        answer = read_all(s)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer


def test_pipelining_is_bounded(small: Running) -> None:
    small.service.pace = 30
    try:
        with connect(small) as s:
            s.sendall(head(Content_Length=len(GOOD)) + GOOD)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                for _ in range(1000):
                    s.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert read_all(s) == b""
        with connect(small) as s:
            s.sendall(head(Content_Length=len(GOOD)) + GOOD)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                s.sendall(head(Content_Length=10**6) + b" " * 10**6)
            assert read_all(s) == b""
    finally:
        small.service.reset()


def test_expect_continue(small: Running) -> None:
    with connect(small) as s:
        s.sendall(head(Content_Length=len(GOOD), Expect="100-continue", Connection="close"))
        assert s.recv(100).startswith(b"HTTP/1.1 100 ")
        s.sendall(GOOD)
        assert b"HTTP/1.1 200" in read_all(s)


@pytest.mark.parametrize(
    "body",
    [
        b'"' * 2_000_000,
        b'"' + b'\\"' * 1_000_000,
        b"\\" * 2_000_000,
        b'{"a":"' + b"\\u0041" * 300_000,
        b"[1," * 60 + b"1," * 900_000,
        b'{"a"' + b" " * 2_000_000 + b"x",
    ],
)
def test_checking_takes_linear_time(body: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(ApiError):
        check(body)
    assert time.process_time() - began < 5  # quadratic would be minutes


@pytest.mark.parametrize("path", ["/v1/requests/x/cancel", "/nowhere"])
def test_who_still_sends_gets_the_answer(server: Running, path: str) -> None:
    """A body that nobody reads does not turn the answer into a reset."""
    size = 32 * 2**20  # more than sockets hold
    begin = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    with connect(server) as s:
        s.sendall(begin.encode() + b" " * size)
        assert read_all(s).startswith(b"HTTP/1.1 404 ")
