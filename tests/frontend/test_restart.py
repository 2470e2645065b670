"""Engines of the real server are killed and stopped; the server goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from frontend.test_serving import Running, ask, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

URL = "/v1/chat/completions"
STORY = ask("Tell me a very long story.", max_tokens=5_000, ignore_eos=True)


@pytest.fixture
def running() -> Iterator[Running]:
    embedded()
    server = Running("--engine-timeout-seconds", "2")
    yield server
    assert server.stop() == 0


class Stream(threading.Thread):
    """Reads a long answer to its end."""

    def __init__(self, server: Running) -> None:
        super().__init__(daemon=True)
        self.server, self.pieces, self.lines = server, 0, list[str]()
        self.start()

    def run(self) -> None:
        body = {**STORY, "stream": True}
        with suppress(httpx.RemoteProtocolError), self.server.http.stream("POST", URL, json=body) as reply:
            for line in reply.iter_lines():
                self.pieces += line.startswith("data: {")
                self.lines = [*self.lines[-2:], line] if line else self.lines


def gone(pid: int) -> bool:
    """Whether a process has ended, also if nobody has been told yet."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def serves_again(server: Running, old: int) -> None:
    """Once the old engine is gone a request succeeds within ten seconds, or, on a machine so busy that the server's own
    start took longer than five, within twice that. Until then each is told that the engine is being restarted."""
    eventually(lambda: gone(old), "the old engine lives on")
    deadline = time.monotonic() + max(10.0, 2 * server.start_seconds)
    ready = []
    while (reply := server.http.post(URL, json=ask("What is 2+2?", max_tokens=20))).status_code != 200:
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "engine_restarting"
        assert int(reply.headers["retry-after"]) > 0
        assert server.http.get("/health").status_code == 200
        ready.append(server.http.get("/ready").status_code)
        assert time.monotonic() < deadline, "the engine did not come back"
        time.sleep(0.05)
    assert set(ready[:-1]) <= {503}  # after the last refusal it may have come
    assert "4" in reply.json()["choices"][0]["message"]["content"]


def test_a_killed_engine_is_replaced(running: Running) -> None:
    whole: list[httpx.Response] = []
    threading.Thread(target=lambda: whole.append(running.http.post(URL, json=STORY)), daemon=True).start()
    streams = [Stream(running) for _ in range(5)]
    eventually(lambda: all(s.pieces > 3 for s in streams), "the streams do not speak")
    old = running.engine_pid()
    os.kill(old, signal.SIGKILL)
    eventually(lambda: gone(old), "the engine lives on")
    for stream in streams:
        stream.join(30)
        assert not stream.is_alive(), "a stream did not end with its engine"
        assert '"code":"engine_restarting"' in stream.lines[-2]
        assert stream.lines[-1] == "data: [DONE]"
    serves_again(running, old)
    eventually(lambda: whole, "a whole answer did not end with its engine")
    assert whole[0].status_code == 503
    assert whole[0].json()["error"]["code"] == "engine_restarting"
    assert running.engine_pid() != old
    assert running.metric("engine_restarts_total") == 1
    assert running.metric("engine_up") == 1
    assert any("ended by signal 9" in line for line in running.log)
    assert not any("Traceback" in line for line in running.log)


def test_a_hanging_engine_is_replaced(running: Running) -> None:
    stream = Stream(running)
    eventually(lambda: stream.pieces > 3, "the stream does not speak")
    old = running.engine_pid()
    os.kill(old, signal.SIGSTOP)
    eventually(lambda: gone(old), "the hanging engine was not killed")
    stream.join(30)
    assert not stream.is_alive(), "the stream did not end with its engine"
    assert '"code":"engine_restarting"' in stream.lines[-2]
    serves_again(running, old)
    assert running.metric("engine_restarts_total") == 1


def test_an_engine_does_not_outlive_its_server() -> None:
    embedded()
    server = Running()
    stream = Stream(server)
    eventually(lambda: stream.pieces > 3, "the stream does not speak")
    engine = server.engine_pid()
    server.process.kill()
    server.process.wait()
    eventually(lambda: gone(engine), "the engine lives on")
