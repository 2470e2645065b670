"""``diastole stream``: a file through a model in this process, and through a server's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from diastole.cli.monitor import Monitor
from diastole.cli.stream import EXTRA, model_options, stream
from diastole.signals.source import About
from diastole.types import UserError
from live import small

app = typer.Typer(pretty_exceptions_enable=False)
app.command(context_settings=EXTRA)(stream)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream")
    net = small.classifier()
    net.register_buffer("covariance", torch.eye(5))
    small.written(net, small.classifier_config(), out / "brain")
    np.save(out / "x.npy", small.noise(300, 5))
    return out


def run(place: Path, *args: str) -> Result:
    names = ",".join(f"ch{i}" for i in range(5))
    common = (str(place / "brain"), str(place / "x.npy"), "--rate", "100", "--channels", names)
    return CliRunner().invoke(app, [*common, *args], env={"COLUMNS": "120"})


def test_events_are_printed_line_by_line(place: Path) -> None:
    shown = run(place).stdout.splitlines()
    assert len(shown) == 8 + 1
    assert all("label" in line and "probabilities" in line for line in shown[:-1])
    assert shown[-1].startswith("done: 3.0 s in 13 chunks, 0 late")


def test_events_are_printed_as_json(place: Path) -> None:
    events = [json.loads(line) for line in run(place, "--json", "--align", "running").stdout.splitlines()]
    assert [e["type"] for e in events] == [*["label"] * 8, "done"]
    assert events[0]["end"] == 1.25


def test_what_is_wrong_is_told(place: Path) -> None:
    for args, said in (
        (("--smoth", "0.5"), "did you mean 'smooth'"),
        (("--align", "mine"), "stored, running or none"),
        (("talk",), "a model's options are --name value"),
    ):
        error = run(place, *args).exception
        assert isinstance(error, UserError)
        assert said in error.message


def test_options_are_values() -> None:
    given = ["--threshold-p", "0.5", "--align=running", "--probability", "--endpoint_ms", "800"]
    found = model_options(given)
    assert found == {"threshold_p": 0.5, "align": "running", "probability": True, "endpoint_ms": 800}


def test_a_line_says_when_and_what() -> None:
    monitor = Monitor("phasenet", "x", About(100.0, ("E",), 1_000_000_000.0), plain=True, as_json=False)
    pick = {"type": "pick", "start": 1.5, "end": 1.5, "phase": "P", "probability": 0.91234, "latency_ms": 3.0}
    assert monitor.line(pick) == "2001-09-09 01:46:41.50  pick     phase P probability 0.912"
    said = {"type": "final", "start": 1.0, "end": 2.0, "text": "yes", "words": []}
    assert Monitor("x", "x", About(1.0, ("a",)), True, False).line(said) == "     1.00 s  final    yes"
