"""The list of papers, and the state that each row is in."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import diastole
from diastole import papers
from diastole.papers import Paper, Standing, standing
from diastole.types import UserError

# What needs several machines or processes is at home where these are.
PLACES = {"technique": "(techniques|cluster|models)", "model": "models", "analysis": "analysis"}


def test_the_list_is_whole_and_well_formed() -> None:
    rows = papers.papers()
    assert Counter(p.kind for p in rows) == {"technique": 31, "model": 29, "analysis": 5}
    assert len({p.name for p in rows}) == len({p.home for p in rows}) == len({p.id for p in rows}) == 65
    for p in rows:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", p.name)
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|doi 10\.\S+", p.id)
        assert re.fullmatch(rf"{PLACES[p.kind]}/[a-z0-9_]+\.py", p.home)
        assert len(p.title) > 10


def test_no_part_of_the_harness_bears_a_papers_name() -> None:
    """reproduce/ holds both, and what they share: what is no paper's must not be taken for one."""
    modules = {p.module for p in papers.papers()}
    files = {f.stem: _defined(f) for f in (Path(diastole.__path__[0]) / "reproduce").glob("*.py")}
    assert {name for name, defined in files.items() if {"PAPER", "run"} <= defined} == modules & set(files)


def _defined(file: Path) -> set[str]:
    """Functions and plain variables of a module."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target) for target in node.targets}
    return found


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'zipcache'"):
        papers.find("zip-cache")
    with pytest.raises(UserError, match="diastole papers lists them"):
        papers.find("qqqqqq")


def test_a_row_gets_as_far_as_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diastole, "__path__", [str(tmp_path)])
    paper = Paper("made-up", "Made up", "arXiv 0000.00000", "technique", "techniques/made_up.py")
    results = tmp_path / "results"
    results.mkdir()

    def status() -> Standing:
        return standing(paper, results)

    assert status() == Standing("not built")
    for folder in ("techniques", "reproduce"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "made_up.py").touch()
    assert status() == Standing("not measured")
    (tmp_path / "reproduce" / "made_up.py").unlink()
    assert status() == Standing("built")
    (tmp_path / "reproduce" / "made_up.py").touch()

    kept = results / "made-up.json"
    rows = [
        {"what": "size", "holds": False},
        {"what": "bytes", "holds": True, "stands_in_for": "size"},
        {"what": "loss", "holds": False},
        {"what": "gain", "holds": False, "stands_in_for": "loss"},
        {"what": "speed", "holds": True},
    ]
    found = {"holds": True, "mode": "full", "headline": {"what": "speed", "shown": "1.7x"}, "rows": rows}
    kept.write_text(json.dumps(found))
    assert status() == ("holds", "1.7x speed", "2 of 3")
    kept.write_text(json.dumps({**found, "holds": False, "mode": "quick"}))
    assert status() == ("does not hold", "1.7x speed (quick)", "2 of 3")
    for damaged in ("", "[]", "{}", "[" * 100_000, '{"holds": true, "mode": "full", "headline": null}'):
        kept.write_text(damaged)
        assert status().status == "unreadable result"
