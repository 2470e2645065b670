"""The list of papers, ``papers.toml``, and the state that each is in, which is looked up and never written down.

A paper is *built* when its home file is there, can be *reproduced* when ``reproduce/NAME.py`` is there, and *holds*
when the last saved result says so.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from diastole.types import UserError

Kind: TypeAlias = Literal["technique", "model", "analysis"]
LARGEST_RESULT = 64 << 20  # bytes of a result file


@dataclass(frozen=True, slots=True)
class Paper:
    """One row of the list."""

    name: str
    title: str
    id: str  # "arXiv 2405.14256", "doi 10...."
    kind: Kind
    home: str  # below the package

    @property
    def module(self) -> str:
        """The name of its reproduction below ``diastole.reproduce``."""
        return self.name.replace("-", "_")

    @property
    def built(self) -> bool:
        """Whether its home file is there."""
        return _exists(self.home)

    @property
    def reproducible(self) -> bool:
        """Whether its reproduction is there."""
        return _exists(f"reproduce/{self.module}.py")


class Standing(NamedTuple):
    """How far a paper has come."""

    status: Literal["not built", "built", "not measured", "holds", "does not hold", "unreadable result"]
    figure: str = ""  # what was measured last, in words
    held: str = ""  # how many of its inequalities do, by themselves or by what stands in for them: "7 of 8"


def _exists(file: str) -> bool:
    import diastole

    return any(Path(p, file).is_file() for p in diastole.__path__)


@cache
def papers() -> tuple[Paper, ...]:
    """All of them, techniques first."""
    rows = tomllib.loads(Path(__file__).with_name("papers.toml").read_text("utf-8"))["paper"]
    return tuple(Paper(**row) for row in rows)


def find(name: str) -> Paper:
    """A paper by its name.

    Raises:
        UserError: there is none; the message has the names that look like it.
    """
    known = {p.name: p for p in papers()}
    if name not in known:
        close = difflib.get_close_matches(name, list(known), 3, 0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "diastole papers lists them"
        raise UserError(f"there is no paper {name!r}; {hint}", param="name")
    return known[name]


def standing(paper: Paper, results: Path) -> Standing:
    """What state a paper is in.

    Args:
        results: folder where ``diastole reproduce --save`` has put its results.
    """
    if not paper.built:
        return Standing("not built")
    if not paper.reproducible:
        return Standing("built")
    path = results / f"{paper.name}.json"
    if not path.exists():
        return Standing("not measured")
    try:
        return _judged(_read(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Standing("unreadable result", str(path))


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_RESULT:
        raise ValueError(path)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _judged(found: dict[str, Any]) -> Standing:
    headline = found["headline"]
    figure = f"{headline['shown']} {headline['what']}" + (" (quick)" if found["mode"] == "quick" else "")
    stood = {row["stands_in_for"] for row in found["rows"] if "stands_in_for" in row and row["holds"] is True}
    mains = [row["holds"] is True or row["what"] in stood for row in found["rows"] if "stands_in_for" not in row]
    return Standing("holds" if found["holds"] is True else "does not hold", figure, f"{sum(mains)} of {len(mains)}")


def named(names: Sequence[str]) -> list[Paper]:
    """The papers of these names, or all that can be reproduced for "all".

    Raises:
        UserError: a name is unknown, or its paper has no reproduction yet.
    """
    if "all" in names:
        ready = [p for p in papers() if p.reproducible]
        if not ready:
            raise UserError("no paper has a reproduction yet: diastole papers shows how far each is", param="name")
        return ready
    wanted = [find(name) for name in dict.fromkeys(names)]
    for paper in wanted:
        if not paper.reproducible:
            raise UserError(
                f"{paper.name} is on the list of papers, but its reproduction is not built yet", param="name"
            )
    return wanted
