"""``diastole train hidden-transfer``: the maps of that technique, and the baselines that they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.types import UserError


def hidden_transfer(
    own: Annotated[Path, typer.Option(help="text of the model itself: a file of [bold]train own-text[/]")],
    model: Annotated[str, typer.Option(help="asset, GGUF file or directory")] = "smollm2-135m",
    out: Annotated[
        Path | None, typer.Option(help="file to write; else one beside the model's; a training begun there goes on")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="directory for the two baselines; else none is trained")
    ] = None,
    layers: Annotated[str, typer.Option(help="after how many layers each map begins; else 2/3 of all and on")] = "",
    steps: Annotated[int, typer.Option(min=1, help="of training, of 64 places each")] = 4_000,
    seed: Annotated[int, typer.Option(min=0, help="of the places")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """The maps of hidden-transfer."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.bench.rig import Rig
    from diastole.kernels.table import physical_cores
    from diastole.recipes import hidden_transfer as recipe
    from diastole.recipes.own_text import Texts
    from diastole.weights import calibration

    name = "hidden-transfer"
    chosen = numbers(layers) if layers else None
    torch.set_num_threads(threads or physical_cores())
    checkpoint, texts = open_model(resolve(model)), Texts.read(own)
    texts.expect(checkpoint.fingerprint, own)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Rig(model, threads=threads) as rig, Bar(*columns, console=Console(stderr=True)) as bar:
        facts = rig.decoder.facts(checkpoint)
        place = out or calibration.beside(name, facts)
        kept = place.with_name(place.name + ".training")
        work = bar.add_task("", total=steps)

        def tell(p: recipe.Progress) -> None:
            losses = ", ".join(f"{student} {loss:.3f}" for student, loss in p.loss.items())
            said = f"loss: {losses}; right {' '.join(f'{x:.0%}' for x in p.right)}"
            bar.update(work, completed=p.step, description=said)
            if p.step % 50 == 0:
                bar.console.print(f"step {p.step}: {said}", highlight=False)

        plan = recipe.Plan(chosen or usual(facts.layers), steps, seed=seed, baselines=bool(baselines))
        students, figures = recipe.train(rig, texts, plan, tell, kept)
    about = {key: str(value) for key, value in figures.items()} | calibration.about(name, facts)
    for student, tensors in students.items():
        own_place = place if baselines is None or student == recipe.TRANSFER else baselines / f"{student}.safetensors"
        calibration.Calibration(tensors, about | {"student": student}).write(own_place)
    kept.unlink(missing_ok=True)
    print(f"{place}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes")
    for student, shares in figures["right"].items():
        for k, by_offset in shares.items():
            print(f"  {student}, right among {k}: " + ", ".join(f"{x:.1%}" for x in by_offset))


def usual(depth: int) -> tuple[int, ...]:
    """20, 22 and 24 of 30 layers, or what is that of another depth."""
    return tuple(max(round(depth * t / 30), 1) for t in (20, 22, 24))


def numbers(text: str) -> tuple[int, ...]:
    """20+22+24 taken apart.

    Raises:
        UserError: the text is not of this form.
    """
    try:
        return tuple(int(n) for n in text.split("+"))
    except ValueError:
        raise UserError(
            f"--layers must be numbers with + between, such as 20+22+24, not {text!r:.40}", param="layers"
        ) from None
