"""``diastole pull``, and the offer to pull what a command finds missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def pull(
    asset: Annotated[str, typer.Argument(help="a name of `diastole list`, or hf:org/name")],
    verify: Annotated[bool, typer.Option("--verify", help="hash the files even if nothing suggests a change")] = False,
) -> None:
    """Fetch a model or data set into the cache, checking its hash. Quiet when it is there already."""
    from rich.console import Console

    from diastole.assets import pull as fetch
    from diastole.assets.catalog import ASSETS

    console = Console(stderr=True)
    with console.status(f"looking for {asset}") as status:
        path = fetch(asset, say=lambda stage: status.update(f"{asset}: {stage}"), thorough=verify)
    known = ASSETS.get(asset)
    licence = f"  licence: {known.licence}" if known else ""
    console.print(f"[green]{asset}[/] is at {path}{licence}", highlight=False, soft_wrap=True)


def offer(model: str) -> None:
    """Fetch an asset that is missing, asking first where somebody can answer."""
    from diastole.assets import resolve
    from diastole.assets.catalog import ASSETS
    from diastole.types import UserError

    if model not in ASSETS or Path(model).exists():
        return
    try:
        resolve(model)
    except UserError as missing:
        question = f"{model} ({ASSETS[model].megabytes} MB, {ASSETS[model].licence}) is not here yet. Fetch it?"
        if not sys.stdin.isatty() or not typer.confirm(question, default=True):
            raise missing from None
        pull(model)
