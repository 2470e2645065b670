"""The pages of the documentation, and the pieces of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^(?:<!-- test: (?P<word>.+?) -->\n)?```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)


class Snippet(NamedTuple):
    """A fenced block. ``word``: what its output must contain if it is to be run, else None."""

    page: Path
    kind: str
    code: str
    word: str | None


def pages() -> list[Path]:
    """Everything that tells users what to type, documentation first."""
    own = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*sorted(DOCS.rglob("*.md")), *(page for page in own if page.exists())]


def snippets(page: Path) -> Iterator[Snippet]:
    """The fenced blocks of a page."""
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        yield Snippet(page, block["kind"], block["code"], block["word"])


def to_run(page: Path) -> list[Snippet]:
    """The blocks of a page that are to be run."""
    return [s for s in snippets(page) if s.word is not None]
