"""``diastole train kv-prediction``: the maps of that technique."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.train_transfer import numbers


def kv_prediction(
    model: Annotated[str, typer.Option(help="asset, GGUF file or directory")] = "smollm2-135m",
    own: Annotated[
        Path | None, typer.Option(help="text of the model itself to learn from too: a file of [bold]train own-text[/]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write; else one beside the model's; a training begun there goes on")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="of the model, from 0, with + between: the auxiliary; else every fourth")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="to learn from")] = 300_000,
    seed: Annotated[int, typer.Option(min=0, help="of the passages")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """The maps of kv-prediction: some of the model's layers tell the keys and values of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.bench.rig import Rig
    from diastole.recipes import kv_prediction as recipe
    from diastole.recipes.own_text import Texts
    from diastole.weights import calibration

    name = "kv-prediction"
    chosen = numbers(layers) if layers else None
    checkpoint, texts = open_model(resolve(model)), None if own is None else Texts.read(own)
    if texts is not None and own is not None:
        texts.expect(checkpoint.fingerprint, own)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Rig(model, threads=threads, context=max(recipe.LENGTHS)) as rig,
        Bar(*columns, console=Console(stderr=True)) as bar,
    ):
        facts = rig.decoder.facts(checkpoint)
        place = out or calibration.beside(name, facts)
        kept = place.with_name(place.name + ".training")
        work = bar.add_task("", total=tokens)
        plan = recipe.Plan(chosen or recipe.usual(facts.layers), tokens, seed=seed)
        found, figures = recipe.train(rig, plan, texts, lambda p: bar.update(work, completed=p.tokens), kept)
    about = {key: str(value) for key, value in figures.items()} | calibration.about(name, facts)
    calibration.Calibration(found, about | {"layers": "+".join(map(str, plan.layers))}).write(place)
    kept.unlink(missing_ok=True)
    print(f"{place}: {figures['bytes'] / 1e6:.2f} MB, from {figures['rows']:,} tokens; how far off, 1: no better than")
    print("the mean, by layer, on text kept apart:")
    for side, errors in figures["errors"].items():
        print(f"  {side}: " + " ".join(f"{x:.2f}" for x in errors))
