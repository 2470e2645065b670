"""``diastole stream``: a file through a model in this process, and through a server's."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from diastole.cli.monitor import Monitor
from diastole.cli.stream import EXTRA, model_options, stream
from diastole.signals.source import About, Piece
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


class Live:
    """A source that gives pieces, and then does something else."""

    def __init__(self, pieces: list[Piece], then: Callable[[threading.Event], None]) -> None:
        self.about = About(100.0, tuple(f"ch{i}" for i in range(5)), live=True)
        self._pieces, self._then, self._closed = pieces, then, threading.Event()

    def __iter__(self) -> Iterator[Piece]:
        yield from self._pieces
        self._then(self._closed)

    def close(self) -> None:
        self._closed.set()


def heard(place: Path, source: Live, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], Result]:
    monkeypatch.setattr("diastole.cli.stream._source", lambda *_: source)
    done = CliRunner().invoke(app, [str(place / "brain"), "it", "--json"])
    return [json.loads(line) for line in done.stdout.splitlines()], done


X = small.noise(300, 5)


def test_a_source_that_fails_is_told_after_what_it_gave(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(closed: threading.Event) -> None:
        raise UserError("the microphone is gone", param="source")

    events, done = heard(place, Live([Piece(X)], fails), monkeypatch)
    assert [e["type"] for e in events] == [*["label"] * 8, "done"]
    assert isinstance(done.exception, UserError)
    assert done.exception.message == "the microphone is gone"


def test_an_interruption_ends_a_source_and_what_it_gave_is_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(closed: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert closed.wait(60)

    events, done = heard(place, Live([Piece(X)], silent), monkeypatch)
    assert [e["type"] for e in events] == [*["label"] * 8, "done"]
    assert done.exception is None


def test_a_long_gap_is_told_and_a_short_one_is_concealed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = 360_000
    pieces = [Piece(X[:100], 0), Piece(X[150:], 150), Piece(X, hour)]
    events, _ = heard(place, Live(pieces, lambda _: None), monkeypatch)
    assert [e["type"] for e in events].count("gap") == 1
    filled = X.copy()
    filled[100:150] = 0
    first, second = (heard(place, Live([Piece(x)], lambda _: None), monkeypatch)[0] for x in (filled, X))
    kept = ("label", "probabilities")
    told = [(e["end"], *(e[k] for k in kept)) for e in events if e["type"] == "label"]
    want = [(e["end"], *(e[k] for k in kept)) for e in first if e["type"] == "label"]
    want += [(e["end"] + hour / 100, *(e[k] for k in kept)) for e in second if e["type"] == "label"]
    assert told == want
