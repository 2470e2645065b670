"""``diastole bench sparse``."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer


def sparse(
    use: Annotated[list[str] | None, typer.Option(help='technique, "name:knob=value"; may be repeated')] = None,
    lengths: Annotated[str, typer.Option(help="tokens of the contexts; k is 1,000")] = "8k,32k,128k",
    rounds: Annotated[int, typer.Option(min=1, max=32, help="turns of each")] = 5,
    kernels: Annotated[str, typer.Option(help="as in `diastole serve`")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What attention costs in a decode step over a synthetic context, dense and with each technique, taking turns.

    Random keys and values in SmolLM2-135M's geometry: it tells about time and bytes, and nothing about quality.
    """
    from rich.console import Console
    from rich.table import Table

    from diastole.bench.longcontext.study import lengths as read
    from diastole.bench.sparse import Sparse, measure
    from diastole.kernels.table import load

    ops = load(threads or None, kernels)
    found: list[Sparse] = []
    with Console(stderr=True).status("") as status:
        for n in read(lengths):
            found += measure([(u,) for u in use or ()], n, ops, rounds, status.update)
    if json:
        print(jsonlib.dumps({"kernels": ops.name, "synthetic": True, "steps": [asdict(f) for f in found]}))
        return
    title = f"synthetic contexts, {ops.name}"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in ("tokens", "stack"):
        table.add_column(name, no_wrap=True)
    for name in ("ms per step", "times as fast as dense", "bytes per token"):
        table.add_column(name, justify="right", no_wrap=True)
    for f in found:
        times = f"{sorted(f.times)[len(f.times) // 2]:.2f} ({min(f.times):.2f}-{max(f.times):.2f})" if f.use else ""
        table.add_row(
            f"{f.length:,}", " ".join(f.use) or "dense", f"{f.seconds * 1e3:.2f}", times, f"{f.bytes_per_token:,.0f}"
        )
    out = Console()
    out.width = max(out.width, 110)
    out.print(table)
