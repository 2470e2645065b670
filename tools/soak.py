"""Drives a real server for a long while at twice what it sustains, and checks that nothing is lost, doubled or leaked.

``make soak`` runs it for ten minutes, ``SOAK_SECONDS=60 make soak`` for one. It prints a table and ends with 1 if
something does not hold. ``--counts-only`` checks no times: for machines that have other work.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from soak_load import CONTEXT, PATIENCE, TURNED_AWAY, Load, Tally
from soak_progress import Health, percentile, showing

OVERLOAD = 2.0  # arrivals beside what is sustained
HEALTH_SECONDS = 0.05  # 99 of 100 probes are answered within
FIRST_SECONDS = 10.0  # 99 of 100 requests that are let in have their first text within: the service's usual promise
DRIFT = 0.03  # of resident memory, from the middle to the end
SHORT_DRIFT = 0.25  # of a run in which allocators may not have seen their largest load yet
PROBES_PER_SECOND = 10
SETTLE_SECONDS = 20.0  # for what was abandoned to be given back

# Small pools, so that pages run out, streams are preempted and the gate is full all the time.
FLAGS = {
    "--memory": "96MiB",
    "--swap": "8MiB",  # that it is full at one time and empty at another is no drift
    "--max-queued": "48",
    "--max-wait-seconds": "2",  # a fifth of the promise: who waits is preempted too, by whom no forecast knows
    "--max-streams": "16",
    "--context": str(CONTEXT),
}


SERVE = [sys.executable, "-m", "diastole.cli.main", "serve", "--port", "0"]


class Server:
    """A server in a process of its own."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr)
        while " is ready at " not in log.read_text():
            if self.process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        self.url = log.read_text().split(" is ready at ")[1].split("/v1")[0]
        self.host, port = self.url.removeprefix("http://").split(":")
        self.port = int(port)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def metrics(self) -> Counter[str]:
        """Each metric's sum over its labels."""
        sums: Counter[str] = Counter()
        for line in self.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                sums[name.split("{")[0].removeprefix("diastole_")] += float(value)  # type: ignore[assignment]
        return sums

    def memory(self) -> dict[str, int]:
        """Resident bytes of the server's process and of its engine's."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        engines = [c for c in children if b"frontend.worker" in Path(f"/proc/{c}/cmdline").read_bytes()]
        return {"server": resident(self.process.pid), "engine": resident(int(engines[0])) if engines else 0}


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Server]:
    """A server that ends with the context."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "log", command)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@dataclass
class Report:
    """What was seen, and what did not hold."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def say(self, what: str, value: object) -> None:
        self.rows.append((what, str(value)))

    def check(self, what: str, holds: bool, value: object = "") -> None:
        self.rows.append((what, f"{value}  {'ok' if holds else 'BROKEN'}".strip()))
        if not holds:
            self.broken.append(what)

    def show(self) -> None:
        width = max(len(what) for what, _ in self.rows)
        for what, value in self.rows:
            print(f"{what:<{width}}  {value}")


def probe(host: str, port: int, seconds: float, told: Path) -> None:
    """Ask /health again and again, and write to a file how long each answer took. It runs in a process of its own, or
    it would measure the load's."""
    end = time.monotonic() + seconds
    with socket.create_connection((host, port), timeout=30) as s, told.open("w", buffering=1) as file:
        while (began := time.monotonic()) < end:
            s.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            got = b""
            while b'{"status":"ok"}' not in got:
                if not (more := s.recv(4096)):
                    raise ConnectionError(f"/health answered {got!r}")
                got += more
            took = time.monotonic() - began
            file.write(f"{took}\n")
            time.sleep(max(0.0, 1 / PROBES_PER_SECOND - took))


async def sustained(load: Load, seconds: float) -> float:
    """Requests per second that end while the server has as many as it lets in."""
    end = time.monotonic() + seconds
    done = 0

    async def keep_one() -> None:
        nonlocal done
        while time.monotonic() < end:
            outcome = await load.one()
            done += outcome != TURNED_AWAY and time.monotonic() < end

    await asyncio.gather(*(keep_one() for _ in range(int(FLAGS["--max-queued"]))))
    return done / seconds


async def drive(load: Load, rate: float, seconds: float, server: Server) -> list[dict[str, int]]:
    """Let requests arrive at this rate until time is over, and all of them end. Resident memory, second by second."""
    memory: list[dict[str, int]] = []

    async def watch() -> None:
        while True:
            memory.append(server.memory())
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    running: set[asyncio.Task[str]] = set()
    end = time.monotonic() + seconds
    at = time.monotonic()
    while (at := at + load.rng.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        task = asyncio.create_task(load.one())
        running.add(task)
        task.add_done_callback(running.discard)
    watcher.cancel()
    await asyncio.wait_for(asyncio.gather(*running), PATIENCE + 10)
    return memory


def judge(report: Report, server: Server, tally: Tally) -> None:
    """What must hold whatever the machine's speed."""
    for (sort, outcome), n in sorted(tally.outcomes.items()):
        report.say(f"  {sort}: {outcome}", n)
    for fault in tally.faults[:20]:
        report.say("  fault", fault)
    report.check("requests that went wrong", not tally.faults, len(tally.faults))
    report.check("ids are unique", len(set(tally.ids)) == len(tally.ids), len(tally.ids))
    idle = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    deadline = time.monotonic() + SETTLE_SECONDS
    while any((metrics := server.metrics())[name] for name in idle) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name in idle:
        report.check(f"{name} at the end", metrics[name] == 0, f"{metrics[name]:g}")
    begun, over = metrics["request_prompt_tokens_count"], metrics["request_success_total"]
    report.check("requests in and out of the engine", begun == over > 0, f"{begun:g} {over:g}")
    report.say("preemptions", f"{metrics['num_preemptions_total']:g}")
    report.check("requests still listed", server.get("/v1/requests").json()["data"] == [])
    open_ = metrics["http_requests_open"] - 1  # the one that asked
    report.check("HTTP requests still open", open_ == 0, f"{open_:g}")
    report.check("engine restarts", metrics["engine_restarts_total"] == 0, f"{metrics['engine_restarts_total']:g}")
    server.process.terminate()
    report.check("exit code", server.process.wait(60) == 0, server.process.returncode)
    log = server.log.read_text()
    wrong = [line for line in log.splitlines() if " ERROR " in line or "Traceback" in line or "failed:" in line]
    report.check("errors in the log", not wrong, "; ".join(wrong[:3]) or 0)


def judge_memory(report: Report, memory: list[dict[str, int]], most: float) -> None:
    """A tenth of the time around the middle beside the last tenth."""
    window = max(1, len(memory) // 10)
    middle, last = memory[len(memory) // 2 : len(memory) // 2 + window], memory[-window:]
    for process in ("server", "engine"):
        a, b = (sum(m[process] for m in part) / window for part in (middle, last))
        value = f"{a / 2**20:.1f} -> {b / 2**20:.1f} MiB ({b / a - 1:+.1%})"
        report.check(f"resident memory of the {process}", b / a - 1 < most, value)


def main() -> int:
    """Print the table; 1 if something does not hold."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", 600)))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--counts-only", action="store_true")
    given = arguments.parse_args()
    report, tally = Report(), Tally()
    spawn = multiprocessing.get_context("spawn")
    command = [*SERVE, *(word for pair in FLAGS.items() for word in pair)]
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(command) as server,
        ProcessPoolExecutor(1, mp_context=spawn) as prober,
    ):
        probed = Path(directory) / "health"
        health = Health(probed)
        load = Load(server.host, server.port, tally, random.Random(given.seed))

        async def run() -> tuple[list[dict[str, int]], Future[None]]:
            first = min(20.0, given.seconds / 5)
            async with showing("measuring", first, tally, health):
                rate = OVERLOAD * await sustained(load, first)
            tally.first.clear()
            report.say("arrivals per second", f"{rate:.2f}")
            probing = prober.submit(probe, server.host, server.port, given.seconds, probed)
            async with showing(f"{rate:.1f}/s", given.seconds, tally, health):
                return await drive(load, rate, given.seconds, server), probing

        memory, probing = asyncio.run(run())
        probing.result()
        judge(report, server, tally)
        judge_memory(report, memory, SHORT_DRIFT if given.counts_only else DRIFT)
        for name, values in (("first text, s", tally.first), ("/health, s", health.look())):
            report.say(f"{name}: p50 p99", f"{percentile(values, 0.5):.4f} {percentile(values, 0.99):.4f}")
        if not given.counts_only:
            report.check("/health in time", percentile(health.times, 0.99) <= HEALTH_SECONDS, f"{HEALTH_SECONDS:g} s")
            report.check("first text in time", percentile(tally.first, 0.99) <= FIRST_SECONDS, f"{FIRST_SECONDS:g} s")
    report.show()
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
