"""Who would wait too long is told so at once, and nobody else is."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from diastole.clock import FakeClock
from diastole.serve.errors import ApiError
from diastole.serve.forecast import LEAST, Forecast, Place
from serve.fakes import Running
from serve.test_chat import HELLO, URL, wait_ready
from serve.test_limits import connect, head


class Line:
    """A server that works prompts off one after the other, at some tokens per second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.clock = FakeClock()
        self.refused = Counter[str]()
        self.forecast = Forecast(self.clock, lambda limit: self.refused.update([limit]))
        self._line: list[tuple[Place, ExitStack, int]] = []

    def join(self, prompt: int) -> None:
        stack = ExitStack()
        self._line.append((stack.enter_context(self.forecast.queue(prompt)), stack, prompt))

    def serve(self, n: int = 1) -> None:
        for _ in range(n):
            place, stack, prompt = self._line.pop(0)
            self.clock.advance(prompt / self.rate)
            self.forecast.served(place)
            stack.close()

    def run(self, prompts: int, depth: int, size: int) -> None:
        """Serve so many, with always ``depth`` of them in the line."""
        for _ in range(depth):
            self.join(size)
        for _ in range(prompts - depth):
            self.serve()
            self.join(size)
        self.serve(depth)

    def real_wait(self, prompt: int) -> float:
        return (sum(p for _, _, p in self._line) + prompt) / self.rate


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_it_foretells_what_comes(depth: int) -> None:
    line = Line(500.0)
    line.run(40, depth, 300)
    for size in (200, 1000, 4000):
        assert line.forecast.seconds([size]) == pytest.approx(line.real_wait(size), rel=0.01)
        line.join(size)
    assert line.forecast.seconds([100, 500]) == pytest.approx(line.real_wait(LEAST + 500), rel=0.01)


@pytest.mark.parametrize(("before", "after"), [(100.0, 2000.0), (2000.0, 100.0)])
def test_it_follows_a_change(before: float, after: float) -> None:
    line = Line(before)
    line.run(50, 5, 400)
    line.rate = after
    line.run(40, 5, 400)
    line.join(1000)
    assert line.forecast.seconds([1000]) == pytest.approx(line.real_wait(1000), rel=0.2)


def test_nobody_is_refused_while_nobody_waits() -> None:
    line = Line(1.0)
    line.forecast.check([10**6], 0.001)  # nothing is known
    line.run(20, 3, 1000)
    line.forecast.check([10**6], 0.001)  # it knows that this takes long, but there is nobody to wait for
    line.join(1000)
    with pytest.raises(ApiError) as refused:
        line.forecast.check([1000], 60.0)
    assert (refused.value.status, refused.value.code) == (429, "overloaded")
    assert int(refused.value.headers["retry-after"]) == pytest.approx(line.real_wait(1000), rel=0.05)
    line.forecast.check([1000], 2001.0)
    assert line.refused == {"wait": 1}


def test_waits_that_scatter_are_taken_for_longer_than_usual() -> None:
    line = Line(1000.0)
    for _ in range(40):
        line.rate = 2000.0 - line.rate + 500.0  # 1000, 1500, 1000, ...
        line.run(1, 1, 1000)
    line.join(1000)
    usual = line.forecast.seconds([1000])
    with pytest.raises(ApiError):
        line.forecast.check([1000], 1.2 * usual)
    line.forecast.check([1000], 1.8 * usual)


def test_a_dark_forecast_is_put_right_by_those_who_come_alone() -> None:
    line = Line(1.0)
    line.run(20, 3, 1000)
    line.rate = 10_000.0
    for _ in range(50):
        line.forecast.check([1000], 1.0)
        line.run(1, 1, 1000)
    line.join(1000)
    line.forecast.check([1000], 1.0)


def test_who_leaves_takes_his_tokens_along_and_tells_that_it_took_long() -> None:
    line = Line(1000.0)
    line.run(20, 1, 500)
    usual = line.forecast.seconds([500])
    with contextlib.suppress(RuntimeError), line.forecast.queue(500):
        raise RuntimeError
    assert line.forecast.waiting == 0
    assert line.forecast.seconds([500]) == usual  # he left at once, which says nothing
    with contextlib.suppress(RuntimeError), line.forecast.queue(500):
        line.clock.advance(100.0)
        raise RuntimeError
    assert line.forecast.seconds([500]) > 10 * usual
    assert line.forecast.waiting == 0


@contextlib.contextmanager
def waiting(server: Running, eventually: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """A server that has seen a first token come late, and where a request waits for one now."""
    wait_ready(server)
    server.service.pace = 0.2
    assert httpx.post(server.url + URL, json={**HELLO, "max_tokens": 1}).status_code == 200
    server.service.pace = 1000.0
    body = json.dumps(HELLO).encode()
    with connect(server) as s:
        s.sendall(head(Content_Length=len(body)) + body)
        eventually(lambda: server.service.running)
        server.service.pace = 0.0  # of others
        yield
    eventually(lambda: not server.service.running)


@pytest.mark.parametrize("stream", [True, False])
def test_over_http(stream: bool, eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running() as server, httpx.Client(base_url=server.url) as http:
        hasty = {**HELLO, "stream": stream, "slo": {"ttft_ms": 100}}
        with waiting(server, eventually):
            refused = http.post(URL, json=hasty)
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert http.post(URL, json=hasty, headers={"x-slo-ttft-ms": "60000"}).status_code == 429  # the body wins
            assert http.post(URL, json={**hasty, "slo": {"ttft_ms": 60_000}}).status_code == 200
            assert http.post(URL, json=HELLO).status_code == 200
            assert 'diastole_requests_limited_total{limit="wait"} 2.0' in http.get("/metrics").text
            assert http.post(URL, json={**hasty, "slo": {"total_ms": 100}}).status_code == 429
        assert http.post(URL, json=hasty).status_code == 200  # nobody waits any more


@pytest.mark.parametrize(("most", "status"), [(0.01, 429), (60.0, 200), (0.0, 200)])
def test_the_limit_of_the_server(most: float, status: int, eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running(max_wait_seconds=most) as server, waiting(server, eventually):
        assert httpx.post(server.url + URL, json=HELLO).status_code == status
        long = {**HELLO, "slo": {"ttft_ms": 60_000}}  # no request can wish itself past it
        assert httpx.post(server.url + URL, json=long).status_code == status
