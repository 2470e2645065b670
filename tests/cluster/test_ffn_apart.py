"""``diastole cluster up --ffn-apart``: engines whose FFNs are processes of their own, spoken to as users do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.test_processes import PROMPTS, Cluster
from cluster.test_processes import alone as alone
from frontend.test_serving import eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    embedded()
    running = Cluster("--replicas", "1", "--no-ray", "--ffn-apart")
    yield running
    assert running.stop() == 0


def ffns(cluster: Cluster) -> list[int]:
    """Process ids of the FFN sides."""
    found = []
    for worker in cluster.workers():
        for children in Path(f"/proc/{worker}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def said(cluster: Cluster, prompts: list[str], then: int | None = None) -> list[str]:
    """What comes of all at once; ``then`` this process is killed."""
    texts = dict.fromkeys(prompts, "")
    talkers = [threading.Thread(target=lambda p=p: texts.update({p: cluster.say(p)})) for p in prompts]
    for talker in talkers:
        talker.start()
    if then is not None:
        os.kill(then, signal.SIGKILL)
    for talker in talkers:
        talker.join(90)
    return list(texts.values())


def test_texts_are_those_of_one_process_to_the_token(cluster: Cluster, alone: list[str]) -> None:
    assert len(ffns(cluster)) == 1
    assert said(cluster, PROMPTS) == alone


def test_when_the_ffn_side_dies_the_engine_is_replaced_and_nobody_is_lost(cluster: Cluster, alone: list[str]) -> None:
    engine, (side,) = cluster.workers(), ffns(cluster)
    assert said(cluster, PROMPTS, then=side) == alone
    eventually(lambda: len(cluster.workers()) == 1 and cluster.workers() != engine, "another engine is started")
    assert cluster.say(PROMPTS[0]) == alone[0]


def test_a_single_request_is_not_to_blame_for_a_side_that_died(cluster: Cluster, alone: list[str]) -> None:
    eventually(lambda: len(ffns(cluster)) == 1, "the engine is whole")
    os.kill(ffns(cluster)[0], signal.SIGKILL)
    assert cluster.say(PROMPTS[1]) == alone[1]


def test_an_engine_that_dies_takes_its_ffn_side_along(cluster: Cluster, alone: list[str]) -> None:
    eventually(lambda: len(ffns(cluster)) == 1, "the engine is whole")
    (side,) = ffns(cluster)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{side}/mem").exists(), "it ends")
    assert cluster.say(PROMPTS[0]) == alone[0]


def test_who_interrupts_all_gets_what_runs_to_its_end(cluster: Cluster, alone: list[str]) -> None:
    eventually(lambda: len(ffns(cluster)) == 1, "the engine is whole")
    (side,) = ffns(cluster)
    os.kill(side, signal.SIGINT)  # as a terminal does to all processes of a command
    os.kill(side, signal.SIGTERM)
    assert said(cluster, PROMPTS) == alone
    assert ffns(cluster) == [side]


def test_prompts_and_answers_apart_have_their_ffns_apart(alone: list[str]) -> None:
    both = Cluster("--prefill", "1", "--decode", "1", "--no-ray", "--ffn-apart", "--micro-batches", "2")
    assert len(ffns(both)) == 2
    assert said(both, PROMPTS) == alone
    assert both.stop() == 0


def test_a_model_of_another_kind_is_refused() -> None:
    command = [sys.executable, "-m", "diastole.cli.main", "cluster", "up", "phasenet", "--replicas", "1", "--no-ray"]
    done = subprocess.run([*command, "--ffn-apart", "--port", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "phasenet does not write token by token" in done.stderr
    assert "Traceback" not in done.stderr
