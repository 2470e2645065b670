"""What operators install: the example configuration, the unit, the image's recipe."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from diastole.config import from_toml
from docs.pages import ROOT
from frontend.test_serving import Running
from models.common import embedded

EXAMPLE = ROOT / "ops" / "engine.toml"
UNIT = ROOT / "ops" / "systemd" / "diastole.service"
LAST_WORDS = 3  # seconds in which aborted requests say so (serve/run.py)


def test_the_example_configuration_is_one() -> None:
    config = from_toml(EXAMPLE.read_text("utf-8"))
    assert list(config.service) == ["chat", "batch"]
    assert config.service["chat"].slo.first < config.service["batch"].slo.first


@pytest.mark.model
@pytest.mark.slow
def test_both_services_of_the_example_answer() -> None:
    embedded()
    running = Running("--memory", "64MiB", target=str(EXAMPLE))
    try:
        assert {c["id"] for c in running.http.get("/v1/models").json()["data"]} == {"chat", "assistant", "batch"}
        for model in ("assistant", "batch"):
            body = {"model": model, "prompt": "One, two, three,", "temperature": 0, "max_tokens": 6}
            assert "four" in running.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    finally:
        assert running.stop() == 0


def test_the_unit_fits_the_server() -> None:
    unit = UNIT.read_text("utf-8")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert stop is not None
    assert int(stop[1]) > from_toml(EXAMPLE.read_text("utf-8")).server.drain_seconds + LAST_WORDS
    assert "RestartPreventExitStatus=2\n" in unit  # what a wrong configuration exits with: tests/cli
    assert "KillMode=mixed\n" in unit  # else the template's worker dies while the last requests are answered


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name  # systemd-analyze wants the program to exist
    copy.write_text(UNIT.read_text("utf-8").replace("/opt/diastole/bin/diastole", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_copies_what_exists_and_is_not_ignored() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = {f for line in lines if line.startswith("COPY ") and "--from" not in line for f in line.split()[1:-1]}
    assert {"src", "pyproject.toml", "constraints.txt"} <= copied
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, rule) for rule in let_in), f"{name} is kept from the image's context"
