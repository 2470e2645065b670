"""What a study found: for programs as JSON, for people as a table, notes and one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from diastole.reproduce.must import figure
from diastole.reproduce.study import Check, Row, Study
from diastole.reproduce.timing import Spread

if TYPE_CHECKING:
    from diastole.reproduce.harness import Outcome

WIDTH = 110  # columns that the table needs


# ---- for programs


def as_json(study: Study) -> dict[str, Any]:
    """Everything that a study was told. Numbers that are not finite become null; ``shown`` still says which."""
    head = study.headline or (study.checks[0].main if study.checks else None)
    return {
        "mode": "quick" if study.quick else "full",
        "seed": study.seed,
        "headline": None if head is None else {"what": head.what, "shown": head.shown},
        "rows": [row for check in study.checks for row in _rows(check)],
        "notes": study.notes,
        "tables": [_finite(asdict(table)) for table in study.tables],
        "curves": [_finite(asdict(curve)) for curve in study.curves],
        "timings_seconds": [_finite(dict(t.seconds)) for t in study.timings],
    }


def _rows(check: Check) -> Iterator[dict[str, Any]]:
    yield _row(check.main)
    for row in check.fallbacks:
        yield {**_row(row), "stands_in_for": check.main.what}


def _row(row: Row) -> dict[str, Any]:
    spread = {"least": row.here.least, "most": row.here.most} if isinstance(row.here, Spread) else {}
    return {
        "what": row.what,
        "claim": row.claim,
        "baseline": _finite(row.baseline),
        "here": _finite(row.here if isinstance(row.here, bool) else float(row.here)),
        **_finite(spread),
        "unit": row.unit,
        "shown": row.shown,
        "must": row.must.words(row.unit),
        "holds": row.holds,
        "why": row.why,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


# ---- for people


def as_text(outcome: Outcome) -> RenderableType:
    """A whole report."""
    return Group(*_parts(outcome))


def _parts(outcome: Outcome) -> Iterator[RenderableType]:
    study, paper = outcome.study, outcome.reproduction.paper
    mode, promised = ("quick run: smaller sizes", 60) if study.quick else ("full run", 1800)
    late = f", more than the {promised} s that it should take" if outcome.seconds > promised else ""
    yield Text.assemble((paper.name, "bold cyan"), "  ", (paper.title, "bold"), f" ({paper.id})")
    if outcome.reproduction.about:
        yield Text(outcome.reproduction.about)
    yield Text(f"{mode}, seed {study.seed}, {outcome.seconds:.1f} s{late}", "dim")
    if study.checks:
        yield ""
        yield _inequalities(study.checks)
    for table in study.tables:
        yield ""
        yield Text(table.title, "bold")
        yield _grid(table.columns, [[figure(cell) for cell in row] for row in table.rows])
    if study.notes:
        yield ""
        yield from (Text(f"note: {note}") for note in study.notes)
    yield ""
    yield Text(f"{paper.name} {outcome.verdict}", "bold green" if outcome.holds else "bold red")


def _inequalities(checks: Sequence[Check]) -> RichTable:
    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("what", "paper's claim", "baseline here", "here", "must hold", "holds?"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(*_cells("", check.main, decides=True))
        for row in check.fallbacks:
            table.add_row(*_cells("  instead: ", row, decides=not check.main.holds))
    return table


def _cells(before: str, row: Row, decides: bool) -> Iterator[Text]:
    what = Text(before + row.what)
    if not row.holds and (row.why or decides):
        what.append(f"\n  why: {row.why or 'no reason is given'}", "dim")
    yield what
    baseline = "" if row.baseline is None else figure(row.baseline, row.unit)
    yield from (Text(cell) for cell in (row.claim, baseline, row.shown, row.must.words(row.unit)))
    if not row.holds:
        yield Text("does not hold here", "red" if decides else "dim")
    else:
        yield Text("yes", "green") if decides else Text("yes (not needed)", "dim")


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def summary(outcomes: Sequence[Outcome]) -> RenderableType:
    """One line for each."""
    rows = [[o.reproduction.paper.name, "yes" if o.holds else "no", f"{o.seconds:.1f}", o.verdict] for o in outcomes]
    return _grid(("paper", "holds?", "seconds", "verdict"), rows)
