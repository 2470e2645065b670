"""Running pairs of techniques: what is wrong with one is found, and said in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

import diastole
from diastole import models
from diastole.bench.pairs import Workbench, pairs, singles
from diastole.cli.check import check
from diastole.types import UserError

HEAD = '''"""A made-up technique."""
from dataclasses import dataclass
from diastole.engine.compose import Mixed
from diastole.state.kv import PagedKV
{body}
NEEDS = frozenset({needs})
@dataclass(frozen=True)
class Params:
    """No knobs."""
def TECHNIQUE(p, facts):
    return {{{slots}}}
'''
LEAKS = """class Leaks(Mixed):
    def compose(self, asks, seconds, cost):
        pool = asks[0].stream.leases["kv"].pool
        pool.grow(pool.lease(), 1)
        return super().compose(asks, seconds, cost)
"""
SPINS = """class Spins:
    def compose(self, asks, seconds, cost):
        return []
"""
BREAKS = """class Breaks:
    def compose(self, asks, seconds, cost):
        return asks[5]
"""
WAVERS = """class Wavers(PagedKV):
    bare = False
    def attend(self, layer, q, tables, starts, lo, hi, scale, out, lse=None):
        super().attend(layer, q, tables, starts, lo, hi, scale, out, lse)
        out *= 1 + len(starts) / 1e6
"""


def write(folder: Path, name: str, slots: str, body: str = "", needs: str = "()") -> None:
    (folder / f"{name}.py").write_text(HEAD.format(needs=needs, slots=slots, body=body))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of techniques."""
    import diastole.techniques as package

    made = tmp_path / "techniques"
    made.mkdir()
    (tmp_path / "models").symlink_to(Path(models.__file__).parent)
    monkeypatch.setattr(diastole, "__path__", [str(tmp_path)])
    monkeypatch.setattr(package, "__path__", [str(made)])
    return made


@pytest.mark.parametrize(
    ("name", "slots", "body", "what"),
    [
        ("wrong_leaks", "'compose': Leaks(256)", LEAKS, "owners but has"),
        ("wrong_spins", "'compose': Spins()", SPINS, "a stream alone has not ended after"),
        ("wrong_breaks", "'compose': Breaks()", BREAKS, "when run: IndexError"),
        ("wrong_wavers", "'kv': Wavers()", WAVERS, "says something else in a crowd than alone"),
        ("wrong_format", "'kv': PagedKV('int3')", "", "when built: "),
    ],
)
def test_what_is_wrong_with_one_is_said(folder: Path, name: str, slots: str, body: str, what: str) -> None:
    write(folder, name, slots, body)
    (trial,) = singles(Workbench())
    assert trial.answer == "FAILED"
    assert what in trial.why


def test_pairs_work_or_are_refused_by_both_names(folder: Path) -> None:
    write(folder, "pair_order", "'compose': Mixed(32)")
    write(folder, "pair_other", "'compose': Mixed(16)")
    write(folder, "pair_small", "'kv': PagedKV('int8')")
    write(folder, "pair_winged", "'kv': PagedKV()", needs="{'wings'}")
    write(folder, "pair_unread", "'kv': PagedKV(), 'route': 1")
    bench = Workbench()
    alone = singles(bench)
    assert {t.techniques[0]: t.answer for t in alone} == {
        "pair-order": "yes",
        "pair-other": "yes",
        "pair-small": "yes",
        "pair-unread": "refused",
        "pair-winged": "refused",
    }
    unread = next(t for t in alone if t.techniques == ("pair-unread",))
    assert "fills the slot 'route', which this kind of service does not read" in unread.why
    found = {t.techniques: t for t in pairs(bench, alone)}
    assert len(found) == 3  # what no language model carries makes no pairs
    assert found["pair-order", "pair-small"].answer == found["pair-other", "pair-small"].answer == "yes"
    assert found["pair-order", "pair-other"].answer == "refused"
    assert "pair-order and pair-other both fill the slot 'compose'" in found["pair-order", "pair-other"].why


def test_a_refusal_that_names_one_only_is_a_defect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "blunt_one", "'compose': Mixed(32)")
    write(folder, "blunt_two", "'kv': PagedKV('int8')")
    bench = Workbench()
    alone = singles(bench)

    def refuse(p: object, facts: object) -> object:
        raise UserError("blunt-two does not like this")

    monkeypatch.setattr(sys.modules["diastole.techniques.blunt_two"], "TECHNIQUE", refuse)
    (trial,) = pairs(bench, alone)
    assert trial.answer == "FAILED"
    assert "does not name both: blunt-two does not like this" in trial.why


def test_the_command_tells_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "told_order", "'compose': Mixed(32)")
    write(folder, "told_small", "'kv': PagedKV('int8')")
    check(pairs=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-4:] == [
        "technique told-order: yes",
        "technique told-small: yes",
        "pair told-order + told-small: yes",
        "pairs: 1 work, 0 are refused, 0 fail",
    ]
    write(folder, "told_spins", "'compose': Spins()", SPINS)
    with pytest.raises(typer.Exit) as end:
        check()
    assert end.value.exit_code == 1
    assert "technique told-spins: FAILED: a stream alone has not ended" in capsys.readouterr().err


def test_operators_that_round_are_no_defect() -> None:
    """torch's products depend on the number of rows; an installation without a compiler must still pass its check."""
    assert str(Workbench("torch").trial("orca")) == "orca: yes"
