"""Priorities through the whole of it: a real server that runs one stream at a time."""

from __future__ import annotations

import threading

import pytest

from frontend.test_serving import MODEL, Running, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_the_urgent_one_overtakes() -> None:
    embedded()
    server = Running("--admission", "priority", "--max-streams", "1")
    done: list[str] = []

    def ask(name: str, priority: int) -> threading.Thread:
        body = {"model": MODEL, "prompt": name, "max_tokens": 40, "ignore_eos": True, "priority": priority}

        def work() -> None:
            server.http.post("/v1/completions", json=body).raise_for_status()
            done.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    body = {"model": MODEL, "prompt": "a", "max_tokens": 5_000, "ignore_eos": True, "stream": True, "priority": 9}
    try:
        with server.http.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()  # kept, since dropping it would hang up
            next(lines)
            threads = [ask("patient", 5)]
            eventually(lambda: server.metric("num_requests_waiting") == 1, "the second one never waited")
            threads.append(ask("urgent", -5))
            eventually(lambda: server.metric("num_requests_waiting") == 2, "the third one never waited")
        for thread in threads:
            thread.join()
        assert done == ["urgent", "patient"]
    finally:
        assert server.stop() == 0
