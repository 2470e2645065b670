"""Clusters on Ray: on one that is started with them, and on one that runs already and whose head is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.test_processes import PROMPTS, Cluster, alone  # noqa: F401 (a fixture)

pytest.importorskip("ray")
pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_ray_places_them_and_a_dead_actor_is_replaced(alone: list[str]) -> None:  # noqa: F811
    running = Cluster("--prefill", "1", "--decode", "1")
    try:
        assert running.say(PROMPTS[3]) == alone[3]
        actors = [
            int(p.parent.name)
            for p in Path("/proc").glob("[0-9]*/cmdline")
            if p.read_bytes().startswith(b"ray::Engine.serve")
        ]
        assert len(actors) == 2
        talkers, said = talking(running)
        os.kill(actors[1], signal.SIGKILL)
        for talker in talkers:
            talker.join(90)
        assert sorted(said) == sorted(alone)
    finally:
        assert running.stop() == 0


def test_a_head_that_is_started_anew_loses_nobody(alone: list[str]) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        with head(port, folder):
            running = Cluster("--replicas", "1", "--address", f"127.0.0.1:{port}")
        try:
            talkers, said = talking(running)  # it is dead, with all that it ran
            with head(port, folder):
                for talker in talkers:
                    talker.join(150)
                assert sorted(said) == sorted(alone)
                assert running.stop() == 0
        finally:
            running.process.kill()
        assert not any("Traceback" in line for line in running.log)


def talking(running: Cluster) -> tuple[list[threading.Thread], list[str]]:
    """All prompts at once, and what will be said."""
    said: list[str] = []
    talkers = [threading.Thread(target=lambda p=p: said.append(running.say(p))) for p in PROMPTS]
    for talker in talkers:
        talker.start()
    return talkers, said


@contextmanager
def head(port: int, folder: str) -> Iterator[None]:
    """A Ray head, killed at the end, without a word to those who use it."""
    ray = Path(sys.executable).with_name("ray")
    flags = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}", "--block"]
    process = subprocess.Popen(
        [ray, "start", "--head", "--disable-usage-stats", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "--block" in line:
                break
        else:
            raise AssertionError(f"no head of Ray: {said}")
        yield
    finally:
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)


def descendants(pid: int) -> list[int]:
    """This process and what it has started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found
