"""Runs the code cells of a notebook in one namespace, as Jupyter would: ``python tools/notebook.py FILE...``.

What the cells print and draw is written back into the file. Text and PNG pictures are all that is kept.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import inspect
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Output = dict[str, Any]


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[Output]]]:
    """Each code cell with its outputs, in order. What a cell raises is raised here."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for i, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
            code = compile("".join(cell["source"]), f"cell {i}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, names))
                else:
                    exec(code, names)
            yield cell, [*_text(printed.getvalue()), *_pictures()]


def _text(printed: str) -> Iterator[Output]:
    if printed:
        yield {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}


def _pictures() -> Iterator[Output]:
    plot = sys.modules.get("matplotlib.pyplot")
    if plot is None:
        return
    for number in plot.get_fignums():
        figure = plot.figure(number)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=72, metadata={"Software": None})
        plot.close(figure)
        data = {"image/png": base64.b64encode(png.getvalue()).decode()}
        yield {"data": data, "metadata": {}, "output_type": "display_data"}


def main(files: list[str]) -> None:
    """Run notebooks and write their outputs into them."""
    import matplotlib

    matplotlib.use("agg")
    for file in files:
        notebook = json.loads(Path(file).read_text("utf-8"))
        for count, (cell, outputs) in enumerate(run(notebook), 1):
            cell["execution_count"], cell["outputs"] = count, outputs
        Path(file).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
