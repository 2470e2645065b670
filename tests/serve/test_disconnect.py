"""Clients that leave, stall or read nothing: their requests end in the engine, and others' do not."""

import json
import socket
import struct
from collections.abc import Callable

import httpx
import pytest

from serve.fakes import Running
from serve.test_chat import HELLO, URL, events, wait_ready
from serve.test_limits import connect, head

Eventually = Callable[[Callable[[], object]], None]


def send(s: socket.socket, **fields: object) -> None:
    body = json.dumps({**HELLO, **fields}).encode()
    s.sendall(head(Content_Length=len(body)) + body)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_client_leaves(server: Running, eventually: Eventually, stream: bool, hard: bool) -> None:
    server.service.endless = True
    server.service.pace = 0.01
    with connect(server) as s:
        send(s, stream=stream)
        eventually(lambda: server.service.running)
        if stream:
            assert s.recv(100).startswith(b"HTTP/1.1 200")
        if hard:  # a reset instead of an orderly end
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 1
    eventually(lambda: server.server.gate.inside == 0)


def test_client_leaves_before_the_first_token(server: Running, eventually: Eventually) -> None:
    server.service.pace = 30
    with connect(server) as s:
        send(s, stream=True)
        eventually(lambda: server.service.running)
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 1


def test_client_leaves_several_prompts(server: Running, eventually: Eventually) -> None:
    server.service.endless = True
    server.service.pace = 0.01
    body = json.dumps({"model": "echo", "prompt": ["a", "b", "c"]}).encode()
    with connect(server) as s:
        s.sendall(head(Content_Length=len(body)).replace(URL.encode(), b"/v1/completions") + body)
        eventually(lambda: len(server.service.running) == 3)
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 3


def test_half_read_answer(server: Running, eventually: Eventually) -> None:
    server.service.endless = True
    server.service.pace = 0.001
    with httpx.stream("POST", server.url + URL, json={**HELLO, "stream": True}) as reply:
        for count, _ in enumerate(reply.iter_lines()):
            if count == 20:
                break
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 1


def test_half_sent_request(server: Running, eventually: Eventually) -> None:
    with connect(server) as s:
        s.sendall(head(Content_Length=500) + b'{"model"')
        eventually(lambda: server.server.gate.inside == 1)
    eventually(lambda: server.server.gate.inside == 0)
    assert server.service.asked == []


def test_others_go_on(server: Running, eventually: Eventually) -> None:
    server.service.pace = 0.02
    with connect(server) as s:
        send(s, stream=True)
        eventually(lambda: server.service.running)
        with httpx.stream("POST", server.url + URL, json={**HELLO, "stream": True}, timeout=10) as reply:
            s.close()
            text = "".join(reply.iter_text())
    assert events(text)[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(server.service.aborted) == 1


def test_reader_that_does_not_read(eventually: Eventually) -> None:
    with Running(send_timeout_seconds=0.3) as server:
        wait_ready(server)
        server.service.endless = True
        server.service.wide = 200_000
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.server.port))
            send(s, stream=True)
            eventually(lambda: server.service.running)
            eventually(lambda: not server.service.running)
            assert len(server.service.aborted) == 1
            eventually(lambda: server.server.gate.inside == 0)
            eventually(lambda: not server.connections)  # although it has not read what was sent
        text = httpx.get(server.url + "/metrics").text
        assert 'route="/v1/chat/completions",status="499"} 1.0' in text


def test_pipelined_client_leaves(server: Running, eventually: Eventually) -> None:
    server.service.endless = True
    server.service.pace = 0.01
    with connect(server) as s:
        send(s, stream=True)
        eventually(lambda: server.service.running)
        send(s, stream=True)  # waits for the first to end
    eventually(lambda: not server.service.running)
    eventually(lambda: server.server.gate.inside == 0)
