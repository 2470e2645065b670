"""``diastole train exits`` and ``diastole train layerskip``: what drafts with a model's own first layers learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def exits(
    own: Annotated[Path, typer.Option(help="text of the model itself: a file of [bold]train own-text[/]")],
    model: Annotated[str, typer.Option(help="asset, GGUF file or directory")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="file to write; else one beside the model's")] = None,
    layers: Annotated[str, typer.Option(help="to exit after, with + between, such as 8+16; empty: five")] = "",
    vocab: Annotated[int, typer.Option(min=1, help="most frequent tokens that an exit may guess")] = 4096,
    steps: Annotated[int, typer.Option(min=1, help="of training, of 512 tokens each")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="of windows")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """Adapters for early exits of a model that was trained for none, for del."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.bench.rig import Rig
    from diastole.kernels.table import physical_cores
    from diastole.recipes import del_exits as recipe
    from diastole.recipes.own_text import Texts
    from diastole.types import UserError
    from diastole.weights import calibration

    try:
        named = tuple(sorted({int(n) for n in layers.split("+")})) if layers else ()
    except ValueError:
        raise UserError(f"--layers must be numbers with + between, not {layers!r:.40}", param="layers") from None
    torch.set_num_threads(threads or physical_cores())
    checkpoint, texts = open_model(resolve(model)), Texts.read(own)
    texts.expect(checkpoint.fingerprint, own)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Rig(model, threads=threads) as rig, Bar(*columns, console=Console(stderr=True)) as bar:
        facts = rig.decoder.facts(checkpoint)
        work = bar.add_task("", total=steps)

        def tell(p: recipe.Progress) -> None:
            said = f"loss {p.loss:.3f}, right {' '.join(f'{share:.0%}' for share in p.right)}"
            bar.update(work, completed=p.step, description=said)
            if p.step % 50 == 0:
                bar.console.print(f"step {p.step}: {said}", highlight=False)

        tensors, figures = recipe.train(rig, texts, recipe.Plan(steps, seed=seed, exits=named, vocab=vocab), tell)
    place = out or calibration.beside("del", facts)
    said = {name: str(value) for name, value in figures.items()}
    calibration.Calibration(tensors, {**said, **calibration.about("del", facts)}).write(place)
    minutes, right = figures["seconds"] / 60, figures["right"]
    print(f"{place}: {figures['parameters']:,} parameters, {minutes:.1f} minutes; right after layer {right}")


def layerskip(
    steps: Annotated[int, typer.Option(min=1, help="of training, of 4,096 tokens each")] = 1_500,
    out: Annotated[Path, typer.Option(help="directory of the model; a training begun there goes on")] = Path(
        "layerskip"
    ),
    seed: Annotated[int, typer.Option(min=0, help="of data and weights")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """A Llama of 12 layers, each of which can be the last, for del."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from diastole.kernels.table import physical_cores
    from diastole.recipes import layerskip as recipe

    torch.set_num_threads(threads or physical_cores())
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task("", total=steps)

        def tell(p: recipe.Progress) -> None:
            said = f"loss {p.loss:.3f}, after earlier layers {p.early:.3f}"
            bar.update(work, completed=p.step, description=said)
            if p.step % 50 == 0:
                bar.console.print(f"step {p.step}: {said}", highlight=False)

        figures = recipe.train(recipe.Plan(steps, seed), out, tell)
    found = ", ".join(f"{name} {of['loss']:.3f}" for name, of in figures["agreement"].items())
    print(f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; loss: {found}")
