"""The study of lexical unit decoding: tasks whose answers are known, figures by hand, and the whole on tiny models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from diastole import papers
from diastole.bench.drafts import Cell, Side
from diastole.recipes import lexical_units as recipe
from diastole.recipes import unit_texts
from diastole.reproduce import harness, unit_tasks
from diastole.reproduce import lexical_unit_decoding as study
from diastole.reproduce.progress import Silent
from diastole.reproduce.study import Study
from diastole.reproduce.unit_tasks import KINDS, Task, parses
from diastole.types import UserError

SOURCE = '''import os


def one(a, b):
    """Say it."""
    if a:
        return (a,
                b)
    for x in b:
        a += x
        b = [
            x for y in a
        ]
    return a


class Two:
    pass


X = {
    1: 2,
}
'''


class Letters:
    """A vocabulary of characters; 0 ends a text."""

    eos_ids = frozenset({0})

    def encode(self, text: str, *, special: bool) -> list[int]:
        assert not special
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i)


@pytest.fixture
def texts() -> list[str]:
    rng = Random(0)
    page = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in (unit_texts.problem(rng) for _ in range(6)))
    source = "\n\n".join(f'def f{i}():\n    """Give {i}.\n\n    More."""\n' for i in range(5))
    return [page, unit_texts.dictionary("some.module", source), SOURCE]


def asked(kind: str, texts: Sequence[str], count: int = 99, room: int = 999) -> list[Task]:
    return unit_tasks.tasks(kind, texts, Letters(), count, room, Random(0))  # type: ignore[arg-type]


def test_documents_are_what_was_put_in(texts: list[str]) -> None:
    ids = np.array([i for text in texts for i in [*map(ord, text), 0]], np.int32)
    assert unit_tasks.documents(ids, Letters()) == [*texts, ""]  # type: ignore[arg-type]


def test_what_stands_there_is_right(texts: list[str]) -> None:
    for kind, count in {"arithmetic": 3, "entries": 4, "code": 1}.items():
        found = asked(kind, texts)
        assert len(found) == count
        for task in found:
            (of,) = [text for text in texts if text.startswith(task.begun) or "\n" + task.begun in text]
            rest = of[of.index(task.begun) + len(task.begun) :]
            assert "".join(map(chr, task.prompt)) == task.begun
            assert task.right(rest)
            assert task.right(rest.partition("\n")[0] + "\n")


def test_what_does_not_stand_there_is_wrong(texts: list[str]) -> None:
    for task in asked("arithmetic", texts):
        assert task.begun.count("Question: ") == 4
        assert task.begun.endswith("\nAnswer:")
        assert task.answer is not None
        assert not task.right(task.answer[:-2] + "0.\n")
        assert not task.right(task.answer + " And more.\n")
        assert not task.right("\n" + task.answer)
    for task in asked("entries", texts):
        assert task.answer == "Kind: function of the module some.module"
        assert not task.right("Kind: class of the module some.module\n")
        assert not task.right("")
    (task,) = asked("code", texts)
    assert task.begun.endswith("        b = [\n")
    assert task.right("            1]\n    return a\n\n\nclass Two:\n    pa")  # the last line is not whole
    assert task.right("            1,\n")
    assert not task.right("            1)\n")
    assert not task.right("            1]\n  return a\n")


def test_beginnings_have_room(texts: list[str]) -> None:
    longest = max(len(task.prompt) for task in asked("entries", texts))
    shorter = asked("entries", texts, room=longest - 1)
    assert 0 < len(shorter) < 4
    assert len(asked("entries", texts, count=2)) == 2
    with pytest.raises(UserError, match="holds no code"):
        asked("code", texts, room=10)


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ("", True),
        ("def f(a):\n    x = (1,\n", True),
        ('def f():\n    """Say\n', True),
        ("@one\n", True),
        ("def f():\n    return 1\n\n\nx = 2\n", True),
        ("def f(:\n", False),
        ("def f():\n    return 1\n  x = 2\n", False),
        ("x = 'a\n", False),
        ("def f():\n    pass\n}\n", False),
        ("def f():\n    break\n", False),
        ("x = '\0'\n", False),
        ("x = " + "-" * 100_000 + "1\n", False),
    ],
)
def test_what_python_can_read(source: str, fine: bool) -> None:
    assert parses(source) is fine


def test_falls_by_hand() -> None:
    assert study.falls({0.7: 90.0, 0.9: 95.0, 0.8: 93.0}) == -2
    assert study.falls({0.7: 90.0, 0.8: 89.0, 0.9: 95.0, 0.99: 92.0}) == 3
    assert study.falls({0.7: 90.0}) == 0


def test_models_are_found_where_the_command_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("corpus.state", "tuned/lexical-units.json", "untuned/lexical-units.json")
    files = [study.MODELS / name for name in names]
    for file in files:
        with pytest.raises(UserError, match="diastole train lexical-units"):
            study.run(Study())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"alpha": 0.5}')
    found = study._models(Study(), None)  # type: ignore[arg-type]
    assert found == (study.MODELS, {"alpha": 0.5}, False)


class Quick:
    """The quick run's outcome, on models that learnt for a moment."""

    def __init__(self) -> None:
        self.outcome = harness.run(papers.find("lexical-unit-decoding"), True, 0, Silent())
        assert self.outcome.error is None
        self.rows = {check.main.what: check.main for check in self.outcome.study.checks}

    def row(self, what: str) -> Any:
        (found,) = [row for name, row in self.rows.items() if name.startswith(what)]
        return found

    def tables(self) -> Iterator[tuple[str, Mapping[str, Sequence[Any]]]]:
        for table in self.outcome.study.tables:
            yield table.title, {str(row[0]): row[1:] for row in table.rows}


SMALL = replace(study.TINY.shape, vocab=320, layers=2, hidden=64, inner=128, heads=2, kv_heads=1)
SIZES = replace(
    study.QUICK,
    confidences=(0.3, 1.0),
    verified=(0.3,),
    count=dict.fromkeys(KINDS, 2),
    tokens=dict.fromkeys(KINDS, 24),
    stretches=2,
    sampled=2,
)


def some() -> unit_texts.Folds:
    """A few texts of each kind in each fold; arithmetic of one phrase, which is learnt at once."""
    rng = Random(0)
    folds = unit_texts.Folds([], [], [])
    for fold, name in zip(folds, ("textwrap", "shlex", "heapq"), strict=True):
        source = inspect.getsource(import_module(name))
        fold += [source, unit_texts.dictionary(name, source)]
        for _ in range(240):
            numbers = [rng.randrange(2, 100) for _ in range(10)]
            said = [f"Question: What comes after {n}?\nAnswer: After {n} comes {n + 1}." for n in numbers]
            fold.append("\n".join(said))
    return folds


def test_the_whole_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = replace(study.TINY, steps=120, tune_steps=30, window=64, room=32, alpha=0.3, shape=SMALL)
    monkeypatch.setattr(study, "TINY", plan)
    monkeypatch.setattr(recipe, "texts", lambda *_: some())
    monkeypatch.setattr(study, "QUICK", SIZES)
    done = Quick()
    assert len(done.rows) == 8
    for what in ("verified: greedy texts", "verified: sampled texts"):
        assert (done.row(what).here, done.row(what).holds) == (0, True)
    units = done.row("tokens per pass, confidence 0.3, look-ahead 5")
    assert units.here > 1
    assert units.baseline > 1
    assert any("trained in this run" in note for note in done.outcome.study.notes)
    titles, changed = [], 0
    for title, sides in done.tables():
        titles.append(title.partition(":")[0])
        assert [*sides] == ["plain", "untuned", "at once, 0.3, 2", "at once, 0.3, 5", "at once, 1, 2",
                            "at once, 1, 5", "verified, 0.3, 2", "verified, 0.3, 5"]  # fmt: skip
        plain = sides["plain"]
        assert plain[0] == plain[2] == plain[3] == 1
        for name in ("at once, 1, 2", "verified, 0.3, 5"):  # what says the same is judged the same
            assert sides[name][4:] == plain[4:]
        assert sides["at once, 1, 5"][0] == 1
        assert 1 <= sides["at once, 0.3, 2"][0] <= 3
        assert 1 <= sides["at once, 0.3, 5"][0] <= 6
        if title.startswith("arithmetic"):  # whose phrases are learnt first
            assert sides["at once, 0.3, 5"][0] > 1.2
        changed += sides["at once, 0.3, 5"][-1]
    assert titles == [*KINDS]
    assert changed > 0  # without verification texts are others
    assert not [*tmp_path.iterdir()]


def test_a_way_that_loses_more_than_it_may_is_not_the_fastest() -> None:
    """The figure that stands for the whole is of those alone that lose little in every kind of work."""
    names = [str(study.Setting(c, 2)) for c in (0.7, 0.8, 0.9)]
    seconds = dict(zip(names, (1.0, 2.0, 4.0), strict=True))

    def judged(kind: str, *right: float) -> study.Judged:
        sides = {"plain": Side([6.0])} | {n: Side([s]) for n, s in seconds.items()}
        return study.Judged(Cell(kind, 1, 8, sides), {"plain": 90.0} | dict(zip(names, right, strict=True)), {}, {})

    def headline(arithmetic: Sequence[float], code: Sequence[float]) -> float:
        found = {"arithmetic": judged("arithmetic", *arithmetic), "entries": judged("entries", 90, 90, 90)}
        taken = Study()
        settings = [study.Setting(c, 2) for c in (0.7, 0.8, 0.9)]
        study._speed(taken, found | {"code": judged("code", *code)}, settings, "")
        return float(taken.checks[0].main.here)

    assert headline((90, 90, 90), (90, 90, 90)) == 6
    assert headline((88.9, 89, 90), (90, 90, 90)) == 3
    assert headline((90, 90, 90), (86.9, 86.9, 87)) == 1.5
    assert np.isnan(headline((0, 0, 0), (90, 90, 90)))
