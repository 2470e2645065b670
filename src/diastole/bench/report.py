"""What a comparison found: as a table, as JSON and as a picture."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from diastole import __version__
from diastole.bench.contest import Result
from diastole.bench.field import WITH, Entry
from diastole.bench.limits import Machine
from diastole.kernels.table import processor
from diastole.types import UserError

OURS = "diastole"
PEERS = ("llama.cpp", "transformers")
WIDTH = 110  # columns that the table needs


def as_json(results: Sequence[Result], entries: Sequence[Entry], machine: Machine, about: str) -> dict[str, Any]:
    """Everything that was measured, with what is needed to judge it."""
    return {
        "about": about,
        "diastole": __version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "platform": sys.platform,
        "threads": machine.threads,
        "machine": asdict(machine),
        "entries": [{"name": e.name, "engine": e.engine, "file": e.path.name, **dict(e.options)} for e in entries],
        "tasks": [_task(r, entries, machine) for r in results],
    }


def _task(result: Result, entries: Sequence[Entry], machine: Machine) -> dict[str, Any]:
    task = result.task
    found: dict[str, Any] = {
        "name": task.name,
        "streams": task.streams,
        "prompt": task.prompt,
        "steps": task.steps,
        "neighbour": task.neighbour,
        "tokens_per_second": {n: {"median": result.median(n), "rounds": v} for n, v in result.speeds.items()},
    }
    if result.failed:
        found["failed"] = result.failed
    for engine in PEERS:
        best = result.best([e.name for e in entries if e.engine == engine])
        if best is not None and OURS in result.speeds:
            median, least, most = result.ratio(OURS, best)
            found[f"against_{engine}"] = {"entry": best, "ratio": median, "least": least, "most": most}
    llama = found.get("against_llama.cpp", {}).get("entry")
    beside = {"dense": OURS, **({} if llama is None else {"llama.cpp": llama})}
    for name in (n for n in result.speeds if n.startswith(WITH)):
        found.setdefault("with", {})[name.removeprefix(WITH)] = {
            what: dict(zip(("ratio", "least", "most"), result.ratio(name, other), strict=True))
            for what, other in beside.items()
            if other in result.speeds
        }
    if result.needs is not None:
        limit = task.tokens / result.needs.seconds(task, machine)
        found["limit_tokens_per_second"] = limit
        found["reached"] = result.median(OURS) / limit
        found["kernels"] = result.needs.kernels
    return found


def as_table(found: dict[str, Any]) -> Table:
    """One line per task and peer; times: the median of the rounds' own ratios, and their range."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    table.add_column("Diastole", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("reached", justify="right", no_wrap=True)
    table.add_column("best peer", no_wrap=True)
    table.add_column("tok/s", justify="right", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    for task in found["tasks"]:
        speeds = task["tokens_per_second"]
        limit, reached = task.get("limit_tokens_per_second"), task.get("reached")
        head = [
            task["name"],
            _speed(speeds.get(OURS)),
            *(("", "") if limit is None else (f"{limit:,.0f}", f"{reached:.0%}")),
        ]
        for engine in PEERS:
            against = task.get(f"against_{engine}")
            if against is None:
                continue
            times = f"[bold]{against['ratio']:.2f}[/] ({against['least']:.2f}-{against['most']:.2f})"
            table.add_row(*head, against["entry"], _speed(speeds[against["entry"]]), times)
            head = ["", "", "", ""]
        for name, ratios in task.get("with", {}).items():
            for what, r in ratios.items():
                times = f"[bold]{r['ratio']:.2f}[/] ({r['least']:.2f}-{r['most']:.2f}) x {what}"
                table.add_row(*head, f"with {name}", _speed(speeds[WITH + name]), times)
                head = ["", "", "", ""]
        for name, speed in speeds.items():
            if name.startswith(f"{OURS} ") and not name.startswith(WITH):
                table.add_row(*head, name, _speed(speed), f"{speeds[OURS]['median'] / speed['median']:.2f}")
                head = ["", "", "", ""]
        if head[0]:
            table.add_row(*head)
    return table


def _speed(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['median']:,.0f}"


def draw(found: dict[str, Any], path: Path) -> None:
    """A picture of it as PNG or SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed: pip install 'diastole[peers]'", param="png") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"diastole": "#1f6feb", "llama.cpp": "#d4792a", "transformers": "#8c959f"}
    tasks = [t for t in found["tasks"] if OURS in t["tokens_per_second"]]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(1.7 * len(tasks) + 1, 4.2), layout="constrained")
    for axis, task in zip([axes] if len(tasks) == 1 else axes, tasks, strict=True):
        bars = [(OURS, OURS)] + [
            (engine, task[f"against_{engine}"]["entry"]) for engine in PEERS if f"against_{engine}" in task
        ]
        for i, (engine, entry) in enumerate(bars):
            rounds = task["tokens_per_second"][entry]["rounds"]
            median = task["tokens_per_second"][entry]["median"]
            axis.bar(i, median, color=colours[engine], width=0.8)
            axis.plot([i, i], [min(rounds), max(rounds)], color="black", linewidth=1)
            axis.text(i, max(rounds), f"{median:,.0f}", ha="center", va="bottom", fontsize=8)
        limit, top = task.get("limit_tokens_per_second", 0), axis.get_ylim()[1]
        if 0 < limit <= 1.3 * top:
            axis.axhline(limit, color="#1f6feb", linestyle=":", linewidth=1)
        far = f"\nlimit {limit:,.0f}" if limit > 1.3 * top else "\n"
        ratio = task.get("against_llama.cpp", {}).get("ratio")
        axis.set_title(task["name"] + (f"\n{ratio:.2f} x llama.cpp" if ratio else "\n") + far, fontsize=8)
        axis.set_xticks([])
        axis.margins(y=0.15)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    names = [e for e in colours if any(e == OURS or f"against_{e}" in t for t in tasks)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[e]) for e in names]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"tokens per second, {found['about']}; lines: range of rounds; dotted, or above: machine's limit", fontsize=10
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
