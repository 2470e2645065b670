"""``diastole papers``."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 130  # columns where nobody knows how many there are
SOME = 20  # columns of a title
COLOURS = {"holds": "green", "does not hold": "red", "unreadable result": "red", "not measured": "yellow"}


def papers(
    kind: Annotated[str | None, typer.Option(help="only these: technique, model or analysis")] = None,
    built: Annotated[bool, typer.Option("--built", help="only those whose file is there")] = False,
    results: Annotated[Path, typer.Option(help="folder of saved results")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """The 65 papers: where each lives, how far it is, and the figure that was saved last."""
    from rich.console import Console
    from rich.padding import Padding
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
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    lines = [(p.name, p.kind, s.status, s.held, p.home, p.title) for p, s in rows]
    head = ("name", "kind", "status", "held", "home", "title")
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    if sum(widths[:-1]) + 2 * len(widths) + SOME > console.width:
        widths[4] = 0  # a narrow terminal has the homes of none
    cut = partial(console.print, no_wrap=True, overflow="ellipsis")
    cut(_line(head, widths, ["bold"] * 6))
    for line, (_, s) in zip(lines, rows, strict=True):
        cut(_line(line, widths, ["cyan", "", COLOURS.get(s.status, ""), "", "", "dim"]))
        if s.figure:
            console.print(Padding(Text(s.figure, "italic"), (0, 0, 0, 4)))
    counts = Counter(s.status for _, s in rows)
    console.print(f"\n{len(rows)} papers: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))


def _line(cells: Sequence[str], widths: Sequence[int], styles: Sequence[str]) -> Text:
    """Cells side by side, those without a width left out."""
    from rich.text import Text

    kept = [(c.ljust(w), style) for c, w, style in zip(cells, widths, styles, strict=True) if w]
    parts = [part for cell in kept for part in (cell, ("  ", ""))]
    line = Text.assemble(*parts[:-1])
    line.rstrip()
    return line
