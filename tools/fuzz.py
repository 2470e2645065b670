"""Sends a real server malformed requests over real sockets, eight at a time, and checks that none breaks anything.

``make fuzz`` sends 20,000 to a server without a model (``FUZZ_REQUESTS`` for another number); ``--model`` takes the
embedded model. It prints the statuses by route, and ends with 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fuzz_requests import Malformed, Request
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from soak import SERVE, SETTLE_SECONDS, Report, Server, serving

CONNECTIONS = 8
SECONDS = 10.0  # for an answer
PATIENCE = 0.1  # before a request that is not whole is given up
WARM = 0.3  # share of the requests after which memory must not grow
GROWTH = 0.05
SLACK = 16 * 2**20  # bytes: allocators keep what the largest of bodies needed
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
SILENT = "none"  # closed without an answer
DEAD_END = b'"code":"grammar_dead_end"'  # what a grammar that leads nowhere is answered with, by design a 500
FAKES = Path(__file__).parents[1] / "tests"


@dataclass
class Tally:
    """What came back."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # resident bytes of all processes, now and then
    dead_ends: int = 0

    def count(self, request: Request, status: str) -> None:
        self.statuses.setdefault(request.route, Counter())[status] += 1

    def fault(self, what: str, request: Request) -> None:
        self.faults.append(f"{what}: {request.route}: {request.data[:300]!r}")


async def send(server: Server, request: Request) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request.data)
        if request.whole:
            return await reader.read()
        try:
            async with asyncio.timeout(PATIENCE):
                got = await reader.read(1)
        except TimeoutError:  # it waits for the rest of the request, which does not come
            writer.write_eof()
            got = b""
        return got + await reader.read()
    except ConnectionError:  # the server has closed while we were sending
        return b""
    finally:
        writer.transport.abort()


async def attack(server: Server, tally: Tally, request: Request) -> None:
    """One request, and what is wrong with its answer."""
    try:
        async with asyncio.timeout(SECONDS):
            got = await send(server, request)
    except TimeoutError:
        tally.count(request, "hang")
        tally.fault(f"no end within {SECONDS:g} s", request)
        return
    except ConnectionError:
        tally.fault("no connection", request)
        return
    got = got.removeprefix(GO_ON)
    status = got.split(b" ", 2)[1].decode() if got.startswith(b"HTTP/1.1 ") else SILENT
    tally.count(request, status)
    if status == SILENT and (got or request.whole):
        tally.fault(f"no answer but {got[:100]!r}", request)
    if DEAD_END in got:
        tally.dead_ends += 1
    elif status.startswith("5") or b'"code":"internal_error"' in got or b'"code":"engine_error"' in got:
        tally.fault(f"{got[-300:]!r}", request)
    if b"Traceback" in got:
        tally.fault("a traceback", request)


async def drive(server: Server, malformed: Malformed, tally: Tally, requests: int) -> None:
    """All requests, with a bar."""
    columns = (TextColumn("malformed requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=requests)
        left = iter(range(requests))

        async def work() -> None:
            for number in left:
                await attack(server, tally, malformed.one())
                progress.advance(bar)
                if number % max(1, requests // 100) == 0:
                    tally.memory.append(sum(server.memory().values()))

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def ordinary(server: Server, model: str) -> Any:
    """What a normal request says."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is 2+2?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    reply = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)
    return reply.json()["choices"] if reply.status_code == 200 else reply.text


def judge(report: Report, server: Server, tally: Tally) -> None:
    """What must hold."""
    for fault in tally.faults[:20]:
        report.say("  fault", fault)
    report.check("answers that are wrong", not tally.faults, len(tally.faults))
    report.say("grammars that led nowhere", tally.dead_ends)
    warm, window = tally.memory[int(len(tally.memory) * WARM) :], max(1, len(tally.memory) // 10)
    before, after = sum(warm[:window]) / window, sum(warm[-window:]) / window
    most = before * (1 + GROWTH) + SLACK
    report.check("resident memory, MiB", after <= most, f"{before / 2**20:.1f} -> {after / 2**20:.1f}")
    idle = ("num_requests_running", "num_requests_waiting")
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        metrics = server.metrics()
        if metrics["http_requests_open"] == 1 and not any(metrics[name] for name in idle):  # the one that asks
            break
        time.sleep(0.1)
    report.check("requests still open", metrics["http_requests_open"] == 1, f"{metrics['http_requests_open'] - 1:g}")
    for name in idle:
        report.check(name, metrics[name] == 0, f"{metrics[name]:g}")
    report.check("requests still listed", server.get("/v1/requests").json()["data"] == [])
    report.check("engine restarts", metrics["engine_restarts_total"] == 0, f"{metrics['engine_restarts_total']:g}")


def show(tally: Tally) -> None:
    """The statuses by route."""
    statuses = sorted({s for counts in tally.statuses.values() for s in counts})
    table = Table("route", *statuses)
    for route, counts in sorted(tally.statuses.items()):
        table.add_row(route, *(str(counts[s] or "") for s in statuses))
    Console(width=160).print(table)


def main() -> int:
    """Print the tables; 1 if something does not hold."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=int(os.environ.get("FUZZ_REQUESTS", 20_000)))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--model", action="store_true", help="the embedded model instead of a fake")
    given = arguments.parse_args()
    name = "smollm2-135m" if given.model else "echo"
    if given.model:
        command = [*SERVE, "--max-tokens", "16"]
    else:
        command = [sys.executable, str(FAKES / "serve" / "fakes.py"), "5", "0", "{}"]
        os.environ["PYTHONPATH"] = str(FAKES)
    report, tally = Report(), Tally()
    with serving(command) as server:
        expected = ordinary(server, name)
        report.check("a normal request before", isinstance(expected, list))
        began = time.monotonic()
        asyncio.run(drive(server, Malformed(name, random.Random(given.seed)), tally, given.requests))
        report.say("requests", f"{given.requests} in {time.monotonic() - began:.0f} s")
        judge(report, server, tally)
        report.check("a normal request after", ordinary(server, name) == expected)
        server.process.terminate()
        report.check("exit code", server.process.wait(60) == 0, server.process.returncode)
        log = server.log.read_text()
        wrong = [line for line in log.splitlines() if "Traceback" in line or " ERROR " in line]
        report.check("errors in the log", not wrong, "; ".join(wrong[:3]) or 0)
    show(tally)
    report.show()
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
