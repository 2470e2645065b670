"""``diastole top``: its maths, its frame, and its manners in a terminal."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from rich.cells import cell_len
from rich.console import Console

from cli.test_cli import run
from diastole.cli.readings import NotRead, Quantile, Reading, Scraper, Window, quantile
from diastole.cli.screen import LEVELS, Screen, seconds, spark
from diastole.metrics import Meter
from diastole.types import SLO
from serve.fakes import FakeBackend, FakeService, Running
from serve.test_chat import HELLO, URL, wait_ready

INF = math.inf


@pytest.mark.parametrize(
    ("buckets", "q", "value"),
    [
        ([(1.0, 0), (2.0, 10), (INF, 10)], 0.5, 1.5),
        ([(1.0, 0), (2.0, 10), (INF, 10)], 0.95, 1.95),
        ([(1.0, 10), (2.0, 10), (INF, 10)], 0.5, 0.5),  # the first bucket begins at zero
        ([(1.0, 5), (2.0, 5), (4.0, 10), (INF, 10)], 0.5, 1.0),
        ([(1.0, 5), (2.0, 5), (4.0, 10), (INF, 10)], 0.75, 3.0),
        ([(1.0, 1), (2.0, 3), (INF, 4)], 0.5, 1.5),
    ],
)
def test_quantiles(buckets: list[tuple[float, float]], q: float, value: float) -> None:
    assert quantile(buckets, q) == Quantile(pytest.approx(value), False)


def test_quantiles_that_are_none_or_beyond() -> None:
    assert quantile([(1.0, 1), (2.0, 3), (INF, 100)], 0.5) == Quantile(2.0, True)
    assert quantile([(1.0, 0), (INF, 0)], 0.5) is None
    assert quantile([], 0.5) is None
    assert quantile([(1.0, 5)], 0.5) is None
    assert seconds(None) == "–"
    assert seconds(Quantile(2.0, True)) == "> 2.00 s"
    assert [seconds(Quantile(v, False)) for v in (0.0012, 0.12, 1.5)] == ["1.2 ms", "120 ms", "1.50 s"]


def test_spark() -> None:
    assert spark([0, 1, 2, 4], 4) == LEVELS[0] + LEVELS[2] + LEVELS[4] + LEVELS[7]
    assert spark([9, 0, 0], 2) == LEVELS[0] * 2
    assert spark([5], 4) == "   " + LEVELS[7]
    assert spark([], 3) == "   "


def reading(at: float, counts: tuple[int, ...], tokens: int) -> Reading:
    """A page with one histogram's cumulative counts and one counter."""
    lines = ["# TYPE diastole_engine_up gauge", "diastole_engine_up 1"]
    lines += ["# TYPE diastole_generation_tokens_total counter"]
    lines += [f'diastole_generation_tokens_total{{model_name="m"}} {tokens}', "# TYPE diastole_t histogram"]
    lines += [
        f'diastole_t_bucket{{le="{le}",model_name="m"}} {n}'
        for le, n in zip(("0.1", "1.0", "+Inf"), counts, strict=True)
    ]
    return Reading("\n".join(lines) + "\n", at)


def test_a_window_knows_only_what_happened_in_it() -> None:
    window = Window(reading(10.0, (100, 100, 100), 500), reading(12.0, (100, 110, 110), 700))
    assert window.rate("generation_tokens_total", model_name="m") == 100.0
    assert window.quantile("t", 0.5, model_name="m") == Quantile(pytest.approx(0.55), False)
    assert window.quantile("t", 0.5, model_name="other") is None
    idle = Window(reading(10.0, (5, 5, 5), 500), reading(12.0, (5, 5, 5), 500))
    assert idle.quantile("t", 0.5) is None
    restarted = Window(reading(10.0, (100, 100, 100), 500), reading(12.0, (0, 10, 10), 40))
    assert restarted.rate("generation_tokens_total") == 20.0
    assert restarted.quantile("t", 0.5) == Quantile(pytest.approx(0.55), False)


@pytest.fixture
def server() -> Iterator[Running]:
    services = FakeService("echo"), FakeService("evil\x1b[2J\n[red]" + "x" * 200, ())
    with Running(FakeBackend(*services)) as server:
        wait_ready(server)
        live(server.backend.meter, 0)
        yield server


def live(meter: Meter, at: int) -> None:
    """Some traffic, ten seconds of it."""
    for i in range(10):
        id = f"{at}-{i}"
        meter.count("prompt_tokens", 100)
        meter.count("prefix_cache_queries", 100)
        meter.count("prefix_cache_hits", 40)
        meter.arrived(id, at, 100, SLO(first=0.5, gap=0.01))
        meter.admitted(id, at)
        meter.stepped(0.2, 60)
        for k in range(5):
            meter.emitted([(id, 1)], at + 0.2 + k * 0.02)
        meter.ended(id, at + 0.3, "stop")
    meter.gauges |= {"kv_pages": 200, "kv_pages_used": 50, "num_requests_running": 3, "num_requests_waiting": 2}


def frame(screen: Screen, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, highlight=False).print(screen)
    return out.getvalue()


def plain(text: str, width: int) -> list[str]:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert not [line for line in lines if not line.isprintable() or cell_len(line) > width]
    return lines


@pytest.mark.parametrize("width", [80, 140])
def test_the_frame(server: Running, width: int) -> None:
    with Scraper(server.url + "/v1/", "") as scraper:
        screen = Screen(scraper.url)
        before = scraper.read()
        live(server.backend.meter, 100)
        httpx.post(server.url + URL, json=HELLO)
        after = scraper.read()
    after.at = before.at + 2.0
    screen.see(Window(before, after))
    lines = plain(frame(screen, width), width)
    text = "\n".join(lines)
    assert len(lines) == 2 + 2 * 9  # no line was broken
    for words in (
        "engine up", "running 3", "waiting 2", "25%  50/200 pages", "25 tok/s", "275 tok/s",
        "40% of prompt tokens", "0 now, 0 ever", "0% ever (missed ttft 0, tpot 20)", "stop 20  length 0",
    ):  # fmt: skip
        assert words in text, words
    assert float(re.findall(r"2xx ([0-9.]+)", text)[0]) > 0  # an answer is counted a moment after it is sent
    # All in the buckets that end at 0.25 s and at 0.025 s.
    assert next(line.split()[:5] for line in lines if line.startswith("TTFT")) == ["TTFT", "175", "ms", "243", "ms"]
    assert next(line.split()[:5] for line in lines if line.startswith("TPOT")) == ["TPOT", "18", "ms", "24", "ms"]
    assert "evil?[2J?[red]xxx" in text
    screen.fail("server not reachable: gone\x1b[2J; trying again")
    assert "not reachable: gone?[2J; trying again" in "\n".join(plain(frame(screen, width), width))


def test_guesses_are_told_where_there_were_any(server: Running) -> None:
    def text() -> str:
        return "\n".join(plain(frame(screen, 80), 80))

    with Scraper(server.url, "") as scraper:
        screen = Screen(scraper.url)
        before = scraper.read()
        screen.see(Window(before, before))
        assert "guesses" not in text()
        meter = server.backend.meter
        live(meter, 100)
        for _ in range(10):  # steps of one row and four guesses, as a draft makes them
            meter.drafted(4, 3)
            meter.stepped(0.2, 5)
            meter.count("generation_tokens", 4)
        after = scraper.read()
    after.at = before.at + 2.0
    screen.see(Window(before, after))
    assert "guesses right  75%, 3.0 a draft" in re.sub(r" {2,}", "  ", text())
    assert "275 tok/s" in text()  # wrong guesses are no prefill
    screen.see(Window(after, after))
    assert "guesses right  –" in re.sub(r" {2,}", "  ", text())


def test_once(server: Running) -> None:
    done = run("top", "--once", "--url", server.url, "--interval", "0.2")
    assert done.returncode == 0
    assert "engine up" in done.stdout
    assert "running 3" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_local_server_is_found_by_its_settings() -> None:
    with Running(api_key=("k1",)) as server:
        wait_ready(server)
        port = str(server.server.port)
        open_ = run("top", "--interval", "0.1", DIASTOLE_SERVER_PORT=port, DIASTOLE_SERVER_API_KEY="k1")
        assert (open_.returncode, open_.stderr) == (0, "")
        shut = run("top", "--once", "--interval", "0.1", DIASTOLE_SERVER_PORT=port)
        assert shut.returncode == 2
        assert "the server wants a key: give it with --api-key" in shut.stderr
        given = run("top", "--once", "--interval", "0.1", "--url", f"127.0.0.1:{port}", "--api-key", "k1")
        assert given.returncode == 0
        # A key of this machine's server is not shown to another.
        other = run("top", "--once", "--interval", "0.1", "--url", server.url, DIASTOLE_SERVER_API_KEY="k1")
        assert other.returncode == 2


def test_what_cannot_be_read_is_said_plainly() -> None:
    done = run("top", "--once", "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr == "error: http://127.0.0.1:9: server not reachable: Connection refused\n"
    for text in ("<html>no</html>", "up 1\n", "a{ 1\n", ""):
        with pytest.raises(NotRead):
            Reading(text, 0.0)
    assert run("top", "--once", "--url", "http://[").returncode == 2


def wait_for(terminal: int, words: bytes, seen: bytes = b"") -> bytes:
    deadline = time.monotonic() + 30
    while words not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536)
    return seen


def test_in_a_terminal_it_waits_for_the_server_and_q_leaves(server: Running) -> None:
    def start(url: str) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "diastole.cli.main", "top", "--url", url, "--interval", "0.1"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        return child, ours

    for url, words in ((server.url, b"running"), ("http://127.0.0.1:9", b"trying again")):
        child, terminal = start(url)
        try:
            wait_for(terminal, words)
            os.write(terminal, b"q")
            wait_for(terminal, b"\x1b[?1049l")  # the screen is given back
            assert child.wait(10) == 0
        finally:
            child.kill()
            child.wait()
            os.close(terminal)
