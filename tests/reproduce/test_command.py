"""The commands, on small made-up studies: what they print, write and exit with."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import diastole
import diastole.reproduce
from diastole import papers
from diastole.cli.main import main
from diastole.papers import Paper
from diastole.reproduce import harness

HEAD = '''"""A made-up reproduction."""
from math import nan
from diastole.reproduce.must import at_least, at_most, equal_to, less_than
from diastole.reproduce.timing import Spread
from diastole.types import UserError
PAPER = "made up to try the harness"
def run(study):
'''
HOLDS = """
    print("a library that talks")
    with study.progress("sweep", 2) as step:
        step()
        study.interleaved({"a": lambda: None, "b": lambda: None}, rounds=2)
        step()
    study.check("speed at 7k", Spread(1.834, 1.7, 1.9), at_least(1.6), claim="up to 2.1x", baseline=1, unit="x")
    study.check("perplexity", 0.91 if study.quick else 1.2, at_most(2), unit="%", claim="close to full", headline=True)
    study.check("same text", True, equal_to(True))
    study.check("error", 0.25 + study.seed, less_than(0.5, "random split"), baseline=0.5)
    study.table("sweep of k", ["k", "error"], [[64, 0.5], [128, 0.25]])
    study.note("synthetic data: says nothing about quality")
    for label in ("tidal", "oracle"):
        study.curve("error over k", [64, 128], [0.5, nan], label=label, xlabel="k", ylabel="error")
"""
FAILS = """
    study.check("speed", 1.2, at_least(1.6), unit="x", why="attention is 41% of a step here")
    study.check("memory", nan, at_most(1))
"""
FALLS_BACK = """
    if not study.check("speed", 1.2, at_least(1.6), claim="2.1x", unit="x", why="attention is 41% of a step here"):
        study.check("reads", 0.2, at_most(0.3), fallback=True)
    study.check("loss", 0.1, at_most(0.2), why="never needed")
    study.check("loss by more layers", 0.3, at_most(0.2), fallback=True)
"""
RAISES = """
    study.check("speed", 1.2, at_least(1))
    raise IndexError("seventh of six")
"""
MISSES = """
    raise UserError("no model is here: diastole pull smollm2-135m")
"""
STUDIES = {"holds": HOLDS, "fails": FAILS, "falls-back": FALLS_BACK, "raises": RAISES, "misses": MISSES}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """Run a command where the list of papers is that of STUDIES and one that is not built."""
    for folder in ("techniques", "reproduce"):
        (tmp_path / folder).mkdir()
    for name, body in STUDIES.items():
        (tmp_path / "reproduce" / f"{name.replace('-', '_')}.py").write_text(HEAD + body)
        (tmp_path / "techniques" / f"{name}.py").touch()
    rows = [Paper(n, f"On {n}", "arXiv 0000.00000", "technique", f"techniques/{n}.py") for n in (*STUDIES, "planned")]
    monkeypatch.setattr(papers, "papers", lambda: tuple(rows))
    monkeypatch.setattr(diastole, "__path__", [*diastole.__path__, str(tmp_path)])
    monkeypatch.setattr(diastole.reproduce, "__path__", [*diastole.reproduce.__path__, str(tmp_path / "reproduce")])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()

    def command(*args: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["diastole", *args])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    yield command
    for name in STUDIES:
        sys.modules.pop(f"diastole.reproduce.{name.replace('-', '_')}", None)


def lines(text: str) -> list[str]:
    """Without what differs from run to run."""
    return [re.sub(r"\d+\.\d s$", "# s", line.rstrip()) for line in text.splitlines()]


def test_the_table(run: Callable[..., Ran]) -> None:
    done = run("reproduce", "holds")
    assert done.code == 0
    assert "a library that talks" in done.err
    assert lines(done.out) == [
        "holds  On holds (arXiv 0000.00000)",
        "made up to try the harness",
        "full run, seed 0, # s",
        "",
        "what         paper's claim  baseline here  here              must hold             holds?",
        "speed at 7k  up to 2.1x     1x             1.834x (1.7-1.9)  ≥ 1.6x                yes",
        "perplexity   close to full                 1.2%              ≤ 2%                  yes",
        "same text                                  yes               = yes                 yes",
        "error                       0.5            0.25              < 0.5 (random split)  yes",
        "",
        "sweep of k",
        "k    error",
        "64   0.5",
        "128  0.25",
        "",
        "note: synthetic data: says nothing about quality",
        "",
        "holds holds here: 4 inequalities",
    ]


def test_what_does_not_hold_stays_in_the_table_with_its_reason(run: Callable[..., Ran]) -> None:
    done = run("reproduce", "fails", "falls-back")
    assert done.code == 1
    shown = lines(done.out)
    assert shown[4:9] == [
        "what                                    paper's claim  baseline here  here  must hold  holds?",
        "speed                                                                 1.2x  ≥ 1.6x     does not hold here",
        "  why: attention is 41% of a step here",
        "memory                                                                none  ≤ 1        does not hold here",
        "  why: no reason is given",
    ]
    assert "fails does not hold here: 2 of 2 inequalities: speed; memory" in shown
    at = shown.index("falls-back  On falls-back (arXiv 0000.00000)")
    assert [re.sub(r"\s{2,}", "  ", line) for line in shown[at + 4 : at + 12]] == [
        "what  paper's claim  baseline here  here  must hold  holds?",
        "speed  2.1x  1.2x  ≥ 1.6x  does not hold here",
        "  why: attention is 41% of a step here",
        "  instead: reads  0.2  ≤ 0.3  yes",
        "loss  0.1  ≤ 0.2  yes",
        "  instead: loss by more layers  0.3  ≤ 0.2  does not hold here",
        "",
        "falls-back holds here: 2 inequalities, 1 of them by fallback: speed",
    ]
    assert shown[-3].split() == ["paper", "holds?", "seconds", "verdict"]
    assert shown[-2].startswith("fails       no ")
    assert shown[-1].startswith("falls-back  yes ")
    assert run("reproduce", "falls-back").code == 0


def test_json_and_nothing_else(run: Callable[..., Ran]) -> None:
    done = run("reproduce", "holds", "fails", "--quick", "--seed", "3", "--json")
    assert done.code == 1
    found, failed = map(json.loads, done.out.splitlines())
    assert (found["mode"], found["seed"], found["holds"]) == ("quick", 3, False)
    assert found["headline"] == {"what": "perplexity", "shown": "0.91%"}  # the quick run's own figure
    assert found["verdict"] == "does not hold here: 1 of 4 inequalities: error"  # seed 3 moved it
    speed, _, same, error = found["rows"]
    assert (speed["here"], speed["least"], speed["most"], speed["must"]) == (1.834, 1.7, 1.9, "≥ 1.6x")
    assert same["here"] is True
    assert (error["here"], error["baseline"], error["holds"]) == (3.25, 0.5, False)
    assert found["curves"][0]["y"] == [0.5, None]
    (rounds,) = found["timings_seconds"]
    assert [len(rounds[name]) for name in "ab"] == [2, 2]
    assert failed["rows"][1]["here"] is None
    assert failed["rows"][1]["shown"] == "none"
    instead = json.loads(run("reproduce", "falls-back", "--json").out)["rows"][1]
    assert instead["stands_in_for"] == "speed"


def test_saved_results_are_what_papers_shows(run: Callable[..., Ran], tmp_path: Path) -> None:
    assert run("reproduce", "all", "--save", "--results", "kept/here").code == 1
    folder = tmp_path / "kept" / "here"
    assert sorted(p.name for p in folder.iterdir()) == ["fails.json", "falls-back.json", "holds.json"]
    found = json.loads((folder / "holds.json").read_text())
    assert {"machine", "versions", "commit", "date", "seconds", "rows", "notes", "tables", "curves"} <= set(found)
    assert {"processor", "cores", "kernels", "memory"} <= set(found["machine"])
    assert {"python", "numpy", "diastole"} <= set(found["versions"])
    listed = json.loads(run("papers", "--json", "--results", "kept/here").out)
    assert {row["name"]: (row["status"], row["figure"]) for row in listed} == {
        "holds": ("holds", "1.2% perplexity"),
        "fails": ("does not hold", "1.2x speed"),
        "falls-back": ("holds", "1.2x speed"),
        "raises": ("not measured", ""),
        "misses": ("not measured", ""),
        "planned": ("not built", ""),
    }
    assert {row["name"]: row["held"] for row in listed if row["held"]} == {
        "holds": "4 of 4",
        "fails": "0 of 2",
        "falls-back": "2 of 2",
    }
    shown = run("papers", "--built", "--kind", "technique", "--results", "kept/here")
    assert "1.2% perplexity" in shown.out
    assert "planned" not in shown.out
    assert run("papers", "--kind", "model").out.endswith("0 papers: \n")
    assert "--kind must be one of technique" in run("papers", "--kind", "song").err


def test_a_result_is_written_whole_or_not_at_all(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("reproduce", "holds", "--save")
    kept = tmp_path / "results" / "holds.json"
    before = kept.read_bytes()

    def full(self: Path, text: str, encoding: str) -> int:
        with self.open("w") as f:
            f.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = run("reproduce", "holds", "--save")
    assert done.code == 2
    assert "the result cannot be written: [Errno 28]" in done.err
    assert kept.read_bytes() == before


def test_what_goes_wrong_inside_is_one_line_and_the_others_still_run(run: Callable[..., Ran], tmp_path: Path) -> None:
    done = run("reproduce", "raises", "misses", "holds", "--save")
    assert done.code == 1
    assert "error: raises failed: IndexError: seventh of six (--debug shows where)" in done.err
    assert "error: misses failed: no model is here: diastole pull smollm2-135m" in done.err
    assert "Traceback" not in done.err
    assert "holds holds here: 4 inequalities" in done.out
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["holds.json"]  # nothing half measured is kept
    debug = run("reproduce", "raises", "--debug")
    assert 'raise IndexError("seventh of six")' in debug.err
    assert json.loads(run("reproduce", "raises", "--json").out)["holds"] is False


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["hold"], "there is no paper 'hold'; did you mean 'holds'"),
        (["holds", "planned"], "planned is on the list of papers, but its reproduction is not built yet"),
        (["holds", "--save", "--results", "taken"], "--results taken: File exists"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    run: Callable[..., Ran], tmp_path: Path, args: list[str], what: str
) -> None:
    (tmp_path / "taken").touch()
    done = run("reproduce", *args)
    assert (done.code, done.out) == (2, "")
    assert what in done.err


def test_a_picture(run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[papers]'")
    assert "written: results/holds.png" in run("reproduce", "holds", "--plot").err
    assert (tmp_path / "results" / "holds.png").read_bytes().startswith(b"\x89PNG")
    assert "falls-back has no curves to draw" in run("reproduce", "falls-back", "--plot").err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = run("reproduce", "holds", "--plot")
    assert (refused.code, refused.out) == (2, "")
    assert "--plot needs matplotlib: pip install 'diastole[papers]'" in refused.err


def test_progress_is_shown_to_those_who_watch(run: Callable[..., Ran]) -> None:
    from io import StringIO

    from rich.console import Console

    from diastole.reproduce.progress import Bars

    screen = StringIO()
    outcome = harness.run(papers.find("holds"), False, 0, Bars(Console(file=screen, force_terminal=True, width=100)))
    assert outcome.holds
    for what in ("sweep", "measuring"):  # one inside the other
        assert what in screen.getvalue()
    assert "sweep" not in run("reproduce", "holds").err  # no terminal


def test_a_run_that_takes_longer_than_it_should_says_so(run: Callable[..., Ran]) -> None:
    from rich.console import Console

    from diastole.reproduce.progress import Silent
    from diastole.reproduce.report import as_text

    outcome = harness.run(papers.find("holds"), True, 0, Silent())
    console = Console(width=110)
    for seconds, late in ((59.9, False), (60.1, True)):
        with console.capture() as shown:
            console.print(as_text(replace(outcome, seconds=seconds)))
        assert ("more than the 60 s that it should take" in shown.get()) is late


def test_a_commit_is_only_told_of_the_packages_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diastole.reproduce import machine

    found: Any = machine.commit.__wrapped__()
    if found is not None:
        assert re.fullmatch(r"[0-9a-f]{40}", found["id"])
        assert isinstance(found["dirty"], bool)
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    assert machine.commit.__wrapped__() is None
