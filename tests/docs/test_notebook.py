"""The notebook's cells run, and its stored outputs are of these cells."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from docs.pages import DOCS, ROOT
from models.common import embedded

sys.path.insert(0, str(ROOT / "tools"))
import notebook

TOUR = DOCS / "notebooks" / "tour.ipynb"


def load() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(TOUR.read_text("utf-8"))
    return loaded


def kinds(outputs: list[dict[str, Any]]) -> list[str]:
    return [o["output_type"] for o in outputs]


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(o.get("text", ())) for o in outputs)


@pytest.mark.model
def test_the_cells_run_and_say_what_is_stored() -> None:
    embedded()
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    said = ""
    for cell, outputs in notebook.run(load()):
        stored = cell["outputs"]  # words may differ on other processors; what kind of thing a cell shows may not
        assert kinds(outputs) == kinds(stored)
        assert len(text(outputs).splitlines()) == len(text(stored).splitlines())
        said += text(outputs)
    assert "alone or together: the same" in said
    assert ", 0 of them found" in said
    assert said.count(" of them found") == 2


def test_it_was_run_from_top_to_bottom_and_is_small() -> None:
    cells = [c for c in load()["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert all(c["outputs"] for c in cells)
    assert TOUR.stat().st_size < 100_000


def test_what_a_cell_raises_is_raised() -> None:
    cells = [
        {"cell_type": "code", "source": ["import asyncio\n", "await asyncio.sleep(0)\n", "x = 1"]},
        {"cell_type": "code", "source": ["print(x)\n"]},
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["raise KeyError('here')"]},
    ]
    outputs = (out for _, out in notebook.run({"cells": cells}))
    assert [text(next(outputs)) for _ in range(2)] == ["", "1\n"]
    with pytest.raises(KeyError, match="here"):
        next(outputs)
