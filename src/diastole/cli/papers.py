"""``diastole papers``."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

WIDTH = 130  # columns that the table needs at least
COLOURS = {"holds": "green", "does not hold": "red", "unreadable result": "red", "not measured": "yellow"}


def papers(
    kind: Annotated[str | None, typer.Option(help="only these: technique, model or analysis")] = None,
    built: Annotated[bool, typer.Option("--built", help="only those whose file is there")] = False,
    results: Annotated[Path, typer.Option(help="folder of saved results")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """The 65 papers: where each lives, how far it is, and the figure that was saved last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from diastole import papers as listed
    from diastole.types import UserError

    kinds = get_args(listed.Kind)
    if kind is not None and kind not in kinds:
        raise UserError(f"--kind must be one of {', '.join(kinds)}, not {kind!r:.60}", param="kind")
    shown = [p for p in listed.papers() if kind in (None, p.kind) and (p.built or not built)]
    rows = [(p, listed.standing(p, results)) for p in shown]
    if json:
        print(jsonlib.dumps([{**asdict(p), **s._asdict()} for p, s in rows], ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("name", "kind", "status", "home"):
        table.add_column(column, no_wrap=True, style="cyan" if column == "name" else None)
    table.add_column("last figure", min_width=11)
    table.add_column("title", style="dim")
    for p, (status, figure) in rows:
        table.add_row(
            p.name,
            p.kind,
            Text(status, COLOURS.get(status, "")),
            p.home,
            Text(figure),
            Text(p.title, no_wrap=True, overflow="ellipsis"),
        )
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    counts = Counter(s.status for _, s in rows)
    console.print(f"\n{len(rows)} papers: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
