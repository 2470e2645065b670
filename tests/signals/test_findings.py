"""What was found in a signal, kept in files that the field's own tools read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from diastole.signals.findings import findings
from diastole.signals.source import About
from diastole.types import UserError

ABOUT = About(100.0, ("Z", "N", "E"), 1_250_000_000.0, station="BW.RJOB")
P: dict[str, Any] = {"type": "pick", "seq": 3, "start": 4.7, "end": 4.7, "phase": "P", "probability": 0.46}
S: dict[str, Any] = {"type": "pick", "seq": 4, "start": 5.65, "end": 5.65, "phase": "S", "probability": 0.53}
GAP: dict[str, Any] = {"type": "gap", "seq": 5, "start": 7.0, "end": 8.0, "extent": {"samples": 100}}
OTHERS: list[dict[str, Any]] = [{"type": "chunk", "seq": 1, "start": 0.0}, {"type": "done", "seq": 9, "chunks": 3}]


def keep(path: Path, about: About = ABOUT) -> None:
    with findings(path, about) as kept:
        for event in (OTHERS[0], P, S, GAP, OTHERS[1]):
            kept.take(event)


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    keep(path)
    times = ["2009-08-11T14:13:24.700000Z", "2009-08-11T14:13:25.650000Z", "2009-08-11T14:13:27Z"]
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert told == [{**event, "time": time} for event, time in zip((P, S, GAP), times, strict=True)]


def test_lines_are_there_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    with findings(path, ABOUT._replace(start=None)) as kept:
        kept.take(P)
        assert json.loads(path.read_text()) == P


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    keep(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["type"], r["phase"], r["start"], r["extent"]) for r in rows] == [
        ("pick", "P", "4.7", ""),
        ("pick", "S", "5.65", ""),
        ("gap", "", "7.0", '{"samples": 100}'),
    ]
    assert rows[0]["time"] == "2009-08-11T14:13:24.700000Z"


def test_nothing_found_is_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    with findings(path, ABOUT):
        pass
    assert path.read_text().splitlines() == ["time,type"]


def test_picks_as_obspy_reads_them(tmp_path: Path) -> None:
    obspy = pytest.importorskip("obspy")
    path = tmp_path / "f.xml"
    keep(path)
    picks = [pick for event in obspy.read_events(str(path), format="QUAKEML") for pick in event.picks]
    assert [(p.phase_hint, round(p.time.timestamp - 1_250_000_000, 3)) for p in picks] == [("P", 4.7), ("S", 5.65)]
    assert [p.waveform_id.get_seed_string() for p in picks] == ["BW.RJOB..Z", "BW.RJOB..N"]
    assert picks[0].comments[0].text == "probability 0.4600"


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    for name, about, what in (
        ("f.txt", ABOUT, "must end in"),
        ("none/f.csv", ABOUT, "is no folder"),
        ("f.xml", ABOUT._replace(start=None), "needs the time"),
    ):
        with pytest.raises(UserError, match=what) as e:
            findings(tmp_path / name, about)
        assert e.value.param == "out"
    assert not list(tmp_path.iterdir())
