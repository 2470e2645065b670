"""``diastole train kv-prediction``: the maps of that technique."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.training import Kept, Model, Threads, bench, numbers, text_of


def kv_prediction(
    model: Model = "smollm2-135m",
    own: Annotated[
        Path | None, typer.Option(help="text of the model itself to learn from too: a file of [bold]train own-text[/]")
    ] = None,
    out: Kept = None,
    layers: Annotated[
        str, typer.Option(help="of the model, from 0, with + between: the auxiliary; else every fourth")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="to learn from")] = 300_000,
    seed: Annotated[int, typer.Option(min=0, help="of the passages")] = 0,
    threads: Threads = 0,
) -> None:
    """The maps of kv-prediction: some of the model's layers tell the keys and values of all."""
    from diastole.recipes import kv_prediction as recipe

    name = "kv-prediction"
    chosen = numbers(layers) if layers else None
    texts = None if own is None else text_of(model, own)
    with bench(model, threads, tokens, context=max(recipe.LENGTHS)) as at:
        plan = recipe.Plan(chosen or recipe.usual(at.facts.layers), tokens, seed=seed)
        place = at.place(name, out)
        kept = place.with_name(place.name + ".training")
        found, figures = recipe.train(at.rig, plan, texts, lambda p: at.tell(p.tokens, ""), kept)
        at.keep(name, found, {**figures, "layers": "+".join(map(str, plan.layers))}, place)
    kept.unlink(missing_ok=True)
    print(f"{place}: {figures['bytes'] / 1e6:.2f} MB, from {figures['rows']:,} tokens; how far off, 1: no better than")
    print("the mean, by layer, on text kept apart:")
    for side, errors in figures["errors"].items():
        print(f"  {side}: " + " ".join(f"{x:.2f}" for x in errors))
