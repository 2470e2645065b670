"""Clusters of real engines: processes of this machine and Ray actors, spoken to over HTTP as users do."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from diastole import LLM, SamplingParams
from frontend.test_serving import MODEL, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPTS = ["The heart is", "Rivers flow to the sea because", "A list of three colours:", "Once upon a time " * 40]
MOST = 48


class Cluster:
    """``diastole cluster up`` in a process of its own."""

    def __init__(self, *flags: str) -> None:
        small = ["--context", "1024", "--memory", "128MiB", "--max-streams", "8"]
        command = [sys.executable, "-m", "diastole.cli.main", "cluster", "up", MODEL, "--port", "0", *flags, *small]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if " is ready at " in line:
                self.url = line.split(" is ready at ")[1].split("/v1")[0]
                break
        else:
            raise AssertionError(f"the cluster did not start: {self.log}")
        threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True).start()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def stop(self) -> int:
        self.http.close()
        self.openai.close()
        self.process.terminate()
        return self.process.wait(60)

    def workers(self) -> list[int]:
        """Process ids of its engines, in order of birth."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                words = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == self.process.pid and b"cluster.worker" in words:
                found.append(int(stat.parent.name))
        return sorted(found)

    def say(self, prompt: str, **more: Any) -> str:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": MOST, "temperature": 0, "ignore_eos": True, **more}
        with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line.startswith("data: {")]
        choices = [json.loads(line[6:])["choices"] for line in lines]
        return "".join(c[0]["text"] for c in choices if c)


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What one engine says."""
    embedded()
    with LLM(MODEL, context=1024) as llm:
        wish = SamplingParams(temperature=0, max_tokens=MOST, ignore_eos=True)
        return [llm.generate([p], wish)[0][0].text for p in PROMPTS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    embedded()
    running = Cluster("--prefill", "1", "--decode", "1", "--no-ray")
    yield running
    assert running.stop() == 0


def test_texts_are_those_of_one_engine_to_the_token(cluster: Cluster, alone: list[str]) -> None:
    said = dict.fromkeys(PROMPTS, "")

    def ask(prompt: str) -> None:
        said[prompt] = cluster.say(prompt)

    threads = [threading.Thread(target=ask, args=(p,)) for p in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert list(said.values()) == alone
    metrics = cluster.http.get("/metrics").text
    assert f'diastole_generation_tokens_total{{model_name="{MODEL}"}} {MOST * len(PROMPTS)}.0' in metrics


def test_chats_tools_and_several_texts_work(cluster: Cluster) -> None:
    reply = cluster.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is 2+2?"}], n=2, max_tokens=12, seed=1
    )
    assert len(reply.choices) == 2
    assert all(c.message.content for c in reply.choices)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    guided = cluster.openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give me a number."}],
        max_tokens=30,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert '"a"' in (guided.choices[0].message.content or "")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_engine_loses_nobody(cluster: Cluster, alone: list[str], victim: int) -> None:
    eventually(lambda: len(cluster.workers()) == 2, "both engines run")
    said: list[str] = []
    talkers = [threading.Thread(target=lambda p=p: said.append(cluster.say(p))) for p in PROMPTS for _ in range(2)]
    for talker in talkers:
        talker.start()
    os.kill(cluster.workers()[victim], signal.SIGKILL)
    for talker in talkers:
        talker.join(90)
    assert sorted(said) == sorted(alone * 2)
    eventually(lambda: len(cluster.workers()) == 2, "another one is started")
    assert cluster.say(PROMPTS[0]) == alone[0]


def test_an_engine_without_memory_loses_nobody(alone: list[str]) -> None:
    """One that has not run a step yet: what has run may go on in the memory that it has."""
    fresh = Cluster("--prefill", "1", "--decode", "1", "--no-ray")
    starved = fresh.workers()[0]
    size = int(Path(f"/proc/{starved}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(starved, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))  # not a page more
    long = "Once upon a time " * 200
    said: list[str] = []
    talkers = [threading.Thread(target=lambda p=p: said.append(fresh.say(p))) for p in [*PROMPTS, long]]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join(90)
    assert sorted(said) == sorted([*alone, fresh.say(long)])
    eventually(lambda: starved not in fresh.workers(), "it has ended")
    assert fresh.stop() == 0


def test_what_remembers_more_than_keys_and_values_is_refused() -> None:
    embedded()
    command = [sys.executable, "-m", "diastole.cli.main", "cluster", "up", MODEL, "--port", "0", "--no-ray"]
    done = subprocess.run(
        [*command, "--prefill", "1", "--decode", "1", "--use", "tidaldecode", "--memory", "128MiB"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "more of a stream than its keys and values" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [([], "--replicas"), (["--prefill", "1"], "--decode"), (["--replicas", "1", "--decode", "1"], "")],
)
def test_numbers_that_make_no_cluster_are_refused(flags: list[str], named: str) -> None:
    command = [sys.executable, "-m", "diastole.cli.main", "cluster", "up", "--no-ray", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--prefill N and --decode M" in done.stderr
    assert named in done.stderr
