"""The watch on memory: new work is refused while too much is held, and nothing else is touched."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from diastole.serve import face
from diastole.serve.errors import ApiError
from diastole.serve.memory import MemoryWatch, own_memory, usual_limit
from serve.fakes import FakeBackend, Running
from serve.test_chat import HELLO, URL, wait_ready

PAGE = os.sysconf("SC_PAGE_SIZE")
ENGINE = 2**22 + 1  # a process that no system has


class Held:
    """Memory by decree."""

    def __init__(self) -> None:
        self.bytes = 0
        self.refused = Counter[str]()
        self.watch = MemoryWatch(1000, lambda: self.bytes, lambda limit: self.refused.update([limit]))

    def refuses(self, now: int) -> bool:
        self.bytes = now
        self.watch.look()
        if self.watch.full:
            with pytest.raises(ApiError):
                self.watch.check()
        else:
            self.watch.check()
        return self.watch.full


def test_it_refuses_above_the_limit_and_accepts_well_below_it(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    with caplog.at_level(logging.INFO):
        # Just below the limit nothing changes, in either direction.
        asked = [(1000, False), (1001, True), (5000, True), (1000, True), (971, True), (970, False), (990, False)]
        assert [held.refuses(now) for now, _ in asked] == [refused for _, refused in asked]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert held.refused == {"memory": 4}


def test_requests_read_nothing() -> None:
    looks = []
    watch = MemoryWatch(1000, lambda: looks.append(1) or 0, lambda limit: None)  # type: ignore[func-returns-value]
    for _ in range(100):
        watch.check()
    assert not looks


def test_what_a_process_holds(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text("9000 500 120 1 0 800 0\n")
    assert own_memory(7, tmp_path) == 380 * PAGE
    assert own_memory(8, tmp_path) == 0
    (tmp_path / "7" / "statm").write_text("")
    assert own_memory(7, tmp_path) == 0
    before = own_memory(os.getpid())
    block = bytearray(os.urandom(1)) * (64 * 2**20)
    assert own_memory(os.getpid()) - before > 48 * 2**20
    del block
    assert 2**27 < usual_limit() < os.sysconf("SC_PHYS_PAGES") * PAGE


def test_over_http(monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], object]], None]) -> None:
    held = {os.getpid(): 300, ENGINE: 0}
    monkeypatch.setattr(face, "own_memory", held.__getitem__)
    backend = FakeBackend()
    backend.processes = [ENGINE]
    with Running(backend, max_resident=1000) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        wait_ready(server)
        server.service.endless, server.service.pace = True, 0.002
        with ThreadPoolExecutor() as pool:
            running = pool.submit(http.post, URL, json={**HELLO, "stream": True})
            eventually(lambda: server.service.spoken)
            held[ENGINE] = 701  # only both together are too much
            eventually(lambda: http.post("/tokenize", json={"model": "echo", "prompt": "x"}).status_code == 503)
            refused = http.post(URL, json=HELLO)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("overloaded_error", "memory_pressure")
            assert http.get("/health").status_code == 200
            metrics = http.get("/metrics").text.splitlines()
            (line,) = [x for x in metrics if x.startswith('diastole_requests_limited_total{limit="memory"}')]
            assert float(line.split()[-1]) >= 2
            assert not running.done()  # who runs goes on
            held[ENGINE] = 600
            server.service.endless = False
            eventually(lambda: http.post(URL, json=HELLO).status_code == 200)
            assert "data: [DONE]" in running.result(20).text
