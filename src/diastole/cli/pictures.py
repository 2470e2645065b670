"""``diastole bench pictures``."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.rows import numbers


def pictures(
    model: Annotated[str, typer.Option("--model", "-m", help="asset, or directory as diffusers writes it")] = "unet",
    together: Annotated[str, typer.Option(help="pictures at once, with commas between")] = "1,8",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="of each picture")] = 50,
    guidance: Annotated[float, typer.Option(min=0.0, max=100.0, help="towards the label; 1: none")] = 2.0,
    label: Annotated[
        int | None, typer.Option(min=0, help="of the pictures, by its number [default: the first]")
    ] = None,
    use: Annotated[list[str] | None, typer.Option(help="also with this technique; may be repeated")] = None,
    peer: Annotated[bool, typer.Option(help="beside diffusers on torch (extra: peers)")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    """Seconds of a picture, beside diffusers with the same weights, scheduler, seeds and guidance, taking turns."""
    from rich.console import Console
    from rich.table import Table

    from diastole.assets import resolve
    from diastole.bench import pictures as stage
    from diastole.params import PictureParams
    from diastole.types import UserError

    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist", param="out")
    sizes, path = numbers("together", together, 256), resolve(model)
    wish = PictureParams(steps, label, guidance, 1)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pictures", "made by", "seconds each", "steps per second", f"times {stage.PEER}", "apart"):
        table.add_column(name, justify="left" if name == "made by" else "right")
    found = []
    with Console(stderr=True).status("loading") as status:
        for n in sizes:
            made = stage.measure(path, n, wish, use or (), peer, rounds, threads, status.update)
            for m in made:
                ratio = stage.times(made, m.name, stage.PEER)
                shown = "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"
                table.add_row(str(n), m.name, f"{m.each:.3f}", f"{steps / m.each:,.0f}", shown, f"{m.apart:.1e}")
                found.append(asdict(m) | {"times": ratio})
    Console().print(table)
    Console().print("apart: the largest difference of a pixel from Diastole's own pictures, which lie between -1 and 1")
    if out is not None:
        out.write_text(jsonlib.dumps({"model": model, "steps": steps, "guidance": guidance, "made": found}, indent=1))
