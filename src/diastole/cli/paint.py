"""``diastole paint``."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diastole.cli.flags import configure, takes
from diastole.types import Array, UserError

MARGIN = 2  # pixels between pictures
LARGEST = 2048  # pixels of a side


@takes("engine", "service")
def paint(
    prompt: Annotated[str, typer.Argument(help="what it shall show: one of the model's labels, or empty")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="a model of pictures: name or directory")] = "unet",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file, all pictures side by side")] = Path("picture.png"),
    number: Annotated[int, typer.Option("-n", min=1, max=64, help="pictures, with seeds one after the other")] = 1,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="more are better and take longer")] = 50,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="how much it shall show that; 1: no more")] = 2.0,
    seed: Annotated[
        int | None, typer.Option(help="the same seed gives the same picture", show_default="random")
    ] = None,
    scale: Annotated[int, typer.Option(min=1, max=64, help="times as wide and high as the model makes it")] = 8,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Make pictures out of noise, and write them to a file."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("this needs Pillow: pip install 'diastole[pictures]'", param="out") from None
    from diastole.frontend.assembly import build_engine
    from diastole.frontend.wire import PictureCard
    from diastole.params import PictureParams
    from diastole.serve.errors import ApiError
    from diastole.serve.images import label_of

    config = configure(model, flags)
    service = replace(next(iter(config.service.values())), max_streams=min(number, 16))
    engine, (card,), _ = build_engine(replace(config, service={"": service}))
    if not isinstance(card, PictureCard):
        raise UserError(f"{model} makes no pictures", param="model")
    try:
        label = label_of(prompt, card)
    except ApiError as e:
        raise UserError(e.message, param="prompt") from None
    first = secrets.randbits(32) if seed is None else seed
    wishes = [PictureParams(steps, label, guidance, first + i) for i in range(number)]
    sheet = _sheet(_painted(engine, card.name, wishes), scale)
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet[..., :3]).save(out, "PNG")
    print(f"{out}: {number} of {prompt or 'anything'}, seeds {first} to {first + number - 1}")


def _painted(engine: Any, name: str, wishes: list[Any]) -> list[Array]:
    """All of them, with a bar on the way."""
    from rich.console import Console
    from rich.progress import Progress

    from diastole.types import Request

    made: dict[str, Array] = {}
    ids = [f"paint-{i}" for i in range(len(wishes))]
    for id, wish in zip(ids, wishes, strict=True):
        engine.add(Request(id, name, None, wish))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        work = bar.add_task("steps", total=sum(w.steps for w in wishes))
        while engine.busy:
            for event in engine.step() or ():
                bar.advance(work, event.units)
                if event.final:
                    made[event.id] = event.data.picture
    engine.close()
    return [made[id] for id in ids]


def _sheet(found: list[Array], scale: int) -> Array:
    """Pictures (H, W, C) from -1 to 1, in rows of about as many as there are rows, as bytes (H, W, C)."""
    import numpy as np

    across = int(np.ceil(np.sqrt(len(found))))
    down = -(-len(found) // across)
    h, w, c = found[0].shape
    scale = max(min(scale, LARGEST // (across * max(h, w))), 1)
    high, wide = h * scale + MARGIN, w * scale + MARGIN
    sheet = np.full((down * high - MARGIN, across * wide - MARGIN, c), 255, np.uint8)
    for i, picture in enumerate(found):
        pixels = ((picture + 1) * 127.5).round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        y, x = i // across * high, i % across * wide
        sheet[y : y + h * scale, x : x + w * scale] = pixels
    return sheet
