"""``diastole list``."""

from __future__ import annotations

import json
from pathlib import Path


def list_() -> None:
    """What there is: assets to pull, models that come along, architectures, techniques to --use, and their slots."""
    from rich.console import Console
    from rich.table import Table

    from diastole import registry
    from diastole.assets import cache
    from diastole.assets.catalog import ASSETS
    from diastole.assets.pull import SHIPPED, shipped
    from diastole.slots import SLOTS

    console = Console()

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in columns:
            made.add_column(column, style="cyan" if column == columns[0] else None, no_wrap=column == columns[0])
        return made

    assets = table("Assets (diastole pull NAME)", "name", "here", "MB", "licence", "what")
    for a in ASSETS.values():
        here = all((cache.folder(a.name) / m.file).exists() for m in a.members)
        assets.add_row(a.name, "yes" if here else "", str(a.megabytes), a.licence, a.about)
    along = table("Models that come along (diastole serve NAME)", "name", "MB", "what")
    for name in shipped():
        along.add_row(name, f"{_megabytes(SHIPPED / name):.1f}", _what(SHIPPED / name))
    models = table("Architectures", "name", "what")
    for m in registry.models():
        models.add_row(m.name, m.head)
    techniques = table("Techniques (--use NAME:knob=value)", "name", "knobs", "what")
    for t in registry.techniques():
        techniques.add_row(t.name, ", ".join(f"{k}={default}" for k, _, default in t.knobs), t.head)
    for made in (assets, along, models, techniques):
        console.print(made)
        console.print()
    console.print("[bold]Slots[/]  " + ", ".join(f"{s}*" if kind == "chain" else s for s, kind in SLOTS.items()))
    console.print("[dim]* a chain of several policies; the others hold one[/]")


def _megabytes(place: Path) -> float:
    return sum(file.stat().st_size for file in place.iterdir()) / 1e6


def _what(place: Path) -> str:
    """The first line of its architecture's docstring, and what it is an adapter of."""
    from diastole import registry
    from diastole.weights.adapter import base_of, is_adapter

    config = json.loads((place / "config.json").read_text("utf-8"))
    module = registry.model(config.get("model_type") or config["_class_name"])
    head = (module.__doc__ or "").partition("\n")[0]
    return f"{head} An adapter of {base_of(place)}" if is_adapter(place) else head
