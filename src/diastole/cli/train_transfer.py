"""``diastole train hidden-transfer``: the maps of that technique, and the baselines that they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.training import Kept, Model, Own, Threads, bench, numbers, text_of


def hidden_transfer(
    own: Own,
    model: Model = "smollm2-135m",
    out: Kept = None,
    baselines: Annotated[
        Path | None, typer.Option(help="directory for the two baselines; else none is trained")
    ] = None,
    layers: Annotated[str, typer.Option(help="after how many layers each map begins; else 2/3 of all and on")] = "",
    steps: Annotated[int, typer.Option(min=1, help="of training, of 64 places each")] = 4_000,
    seed: Annotated[int, typer.Option(min=0, help="of the places")] = 0,
    threads: Threads = 0,
) -> None:
    """The maps of hidden-transfer."""
    from diastole.recipes import hidden_transfer as recipe

    name = "hidden-transfer"
    chosen = numbers(layers) if layers else None
    texts = text_of(model, own)
    with bench(model, threads, steps) as at:
        place = at.place(name, out)
        kept = place.with_name(place.name + ".training")

        def tell(p: recipe.Progress) -> None:
            losses = ", ".join(f"{student} {loss:.3f}" for student, loss in p.loss.items())
            at.tell(p.step, f"loss: {losses}; right {' '.join(f'{x:.0%}' for x in p.right)}")

        plan = recipe.Plan(chosen or usual(at.facts.layers), steps, seed=seed, baselines=bool(baselines))
        students, figures = recipe.train(at.rig, texts, plan, tell, kept)
        for student, tensors in students.items():
            own_place = (
                place if baselines is None or student == recipe.TRANSFER else baselines / f"{student}.safetensors"
            )
            at.keep(name, tensors, {**figures, "student": student}, own_place)
    kept.unlink(missing_ok=True)
    print(f"{place}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes")
    for student, shares in figures["right"].items():
        for k, by_offset in shares.items():
            print(f"  {student}, right among {k}: " + ", ".join(f"{x:.1%}" for x in by_offset))


def usual(depth: int) -> tuple[int, ...]:
    """20, 22 and 24 of 30 layers, or what is that of another depth."""
    return tuple(max(round(depth * t / 30), 1) for t in (20, 22, 24))
