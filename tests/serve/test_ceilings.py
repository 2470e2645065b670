"""Ceilings: whatever a request asks for, it gets no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from diastole.clock import FakeClock
from diastole.serve import energy
from diastole.serve.app import create_app
from diastole.serve.energy import Energy, Rapl
from diastole.types import UserError
from serve.fakes import CONTEXT, FakeBackend, Running, config
from serve.test_chat import HELLO, URL, wait_ready

COMPLETIONS = "/v1/completions"
PLAIN = {"model": "echo", "prompt": "x" * 40}


@pytest.fixture
def capped() -> Iterator[Running]:
    with Running(max_tokens=10) as server:
        wait_ready(server)
        yield server


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_than_the_cap_is_refused(capped: Running, name: str) -> None:
    reply = httpx.post(capped.url + URL, json={**HELLO, name: 11})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (name, "invalid_value")
    assert error["message"].startswith(f"{name} may be at most 10 on this server")
    assert httpx.post(capped.url + COMPLETIONS, json={**PLAIN, "max_tokens": 11}).status_code == 400
    assert capped.service.asked == []
    assert httpx.post(capped.url + URL, json={**HELLO, name: 10}).status_code == 200


def test_who_names_no_number_gets_the_cap(capped: Running) -> None:
    long = {**HELLO, "messages": [{"role": "user", "content": "x" * 40}]}
    for path, body in ((URL, long), (COMPLETIONS, PLAIN)):
        reply = httpx.post(capped.url + path, json=body).json()
        assert reply["usage"]["completion_tokens"] == 10
        assert reply["choices"][0]["finish_reason"] == "length"


def test_the_cap_does_not_lead_out_of_the_context() -> None:
    with Running(max_tokens=CONTEXT) as server:
        wait_ready(server)
        assert httpx.post(server.url + URL, json=HELLO).status_code == 200
        assert server.service.asked[0].params.max_tokens is None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("silent", [True, False])
def test_seconds(stream: bool, silent: bool, eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running(max_seconds=0.3) as server:
        wait_ready(server)
        server.service.endless = True
        server.service.pace = 1000.0 if silent else 0.01
        body: dict[str, Any] = {**HELLO, "n": 2, "stream": stream}
        if stream:
            lines = httpx.post(server.url + URL, json=body, timeout=20).text.split("\n\n")
            assert lines[-2] == "data: [DONE]"
            chunks = [json.loads(x.removeprefix("data: ")) for x in lines[:-2]]
            choices = [c["choices"][0] for c in chunks]
            said = any(c["delta"].get("content") for c in choices)
        else:
            choices = httpx.post(server.url + URL, json=body, timeout=20).json()["choices"]
            said = any(c["message"]["content"] for c in choices)
        finished = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
        assert finished == {0: "length", 1: "length"}
        assert said is not silent
        eventually(lambda: not server.service.running)
        assert len(server.service.aborted) == 1
        assert 'diastole_requests_limited_total{limit="seconds"} 1.0' in httpx.get(server.url + "/metrics").text


class Burner:
    """Counts as much as it is told to."""

    def __init__(self) -> None:
        self.burnt = 0.0

    def joules(self) -> float:
        return self.burnt


def test_energy_is_shared_by_tokens_and_none_of_it_is_lost() -> None:
    clock, source = FakeClock(), Burner()
    shared = Energy(source, clock)
    source.burnt = 1000.0  # before anybody came
    with shared.share() as a, shared.share() as b:
        shared.add(a, 30)
        source.burnt += 8.0
        clock.advance(0.2)
        assert shared.add(b, 10) == 2.0
        assert a.joules == 6.0
        source.burnt += 5.0
        clock.advance(0.01)  # too soon to read again
        assert shared.add(b, 1) == 2.0
        clock.advance(0.2)
        assert shared.add(b, 0) == 7.0
        source.burnt += 3.0
        clock.advance(1.0)
        shared.add(a, 0)  # nobody took a token meanwhile: what was used waits for the next one
        clock.advance(1.0)
        shared.add(a, 1)
        assert a.joules == 9.0
    source.burnt += 500.0
    with shared.share() as c:
        clock.advance(1.0)
        assert shared.add(c, 5) == 0.0


def package(root: Path, number: int, name: str, energy: int | str) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", 1_000_000)):
        (folder / "new").write_text(f"{value}\n")
        (folder / "new").rename(folder / file)  # whole, since a server may be reading
    return folder


def test_counters_of_packages_wrap_around(tmp_path: Path) -> None:
    package(tmp_path, 0, "package-0", 900_000)
    package(tmp_path, 1, "package-1", 0)
    package(tmp_path, 2, "psys", 5)  # contains the others
    rapl = Rapl(tmp_path)
    assert rapl.joules() == 0
    package(tmp_path, 0, "package-0", 100_000)
    package(tmp_path, 1, "package-1", 300_000)
    package(tmp_path, 2, "psys", 999_999)
    assert rapl.joules() == pytest.approx(0.5)
    assert rapl.joules() == pytest.approx(0.5)


def test_counters_that_cannot_be_read_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="this machine shows none"):
        Rapl(tmp_path)
    folder = package(tmp_path, 0, "package-0", "nonsense")
    with pytest.raises(UserError, match="it holds no number"):
        Rapl(tmp_path)
    (folder / "energy_uj").unlink()
    with pytest.raises(UserError, match="energy_uj: No such file"):
        Rapl(tmp_path)
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    with pytest.raises(UserError, match=r"server\.max_joules needs"):
        create_app(FakeBackend(), config(max_joules=1.0))


@pytest.mark.parametrize("stream", [True, False])
def test_joules(
    stream: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    """Counters that stand still until the answer is well under way."""
    package(tmp_path, 0, "package-0", 0)
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    with Running(max_joules=0.5) as server, ThreadPoolExecutor() as pool:
        wait_ready(server)
        assert httpx.post(server.url + URL, json=HELLO).json()["choices"][0]["finish_reason"] == "stop"
        server.service.reset()
        server.service.endless = True
        server.service.pace = 0.01
        asked = pool.submit(httpx.post, server.url + URL, json={**HELLO, "stream": stream}, timeout=20)
        eventually(lambda: server.service.spoken)
        package(tmp_path, 0, "package-0", 600_000)
        assert '"finish_reason":"length"' in asked.result().text
        eventually(lambda: server.service.aborted)
        assert 'diastole_requests_limited_total{limit="joules"} 1.0' in httpx.get(server.url + "/metrics").text


def test_who_is_quick_is_not_cut() -> None:
    with Running(max_seconds=60.0) as server:
        wait_ready(server)
        for path, body in ((URL, HELLO), (COMPLETIONS, {**PLAIN, "prompt": ["a", "b"], "n": 2})):
            choices = httpx.post(server.url + path, json=body).json()["choices"]
            assert {c["finish_reason"] for c in choices} == {"stop"}
        assert 'limit="seconds"} 0.0' in httpx.get(server.url + "/metrics").text
