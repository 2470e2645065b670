"""``diastole train exits`` and ``diastole train layerskip``: what drafts with a model's own first layers learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.training import Folder, Model, Out, Own, Seed, Threads, bench, numbers, telling, text_of


def exits(
    own: Own,
    model: Model = "smollm2-135m",
    out: Out = None,
    layers: Annotated[str, typer.Option(help="to exit after, with + between, such as 8+16; empty: five")] = "",
    vocab: Annotated[int, typer.Option(min=1, help="most frequent tokens that an exit may guess")] = 4096,
    steps: Annotated[int, typer.Option(min=1, help="of training, of 512 tokens each")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="of windows")] = 0,
    threads: Threads = 0,
) -> None:
    """Adapters for early exits of a model that was trained for none, for del."""
    from diastole.recipes import del_exits as recipe

    named = tuple(sorted({*numbers(layers)})) if layers else ()
    texts = text_of(model, own)
    with bench(model, threads, steps) as at:

        def tell(p: recipe.Progress) -> None:
            at.tell(p.step, f"loss {p.loss:.3f}, right {' '.join(f'{share:.0%}' for share in p.right)}")

        plan = recipe.Plan(steps, seed=seed, exits=named, vocab=vocab)
        tensors, figures = recipe.train(at.rig, texts, plan, tell)
        place = at.place("del", out)
        at.keep("del", tensors, figures, place)
    minutes, right = figures["seconds"] / 60, figures["right"]
    print(f"{place}: {figures['parameters']:,} parameters, {minutes:.1f} minutes; right after layer {right}")


def layerskip(
    steps: Annotated[int, typer.Option(min=1, help="of training, of 4,096 tokens each")] = 1_500,
    out: Folder = Path("layerskip"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """A Llama of 12 layers, each of which can be the last, for del."""
    from diastole.recipes import layerskip as recipe

    with telling(steps, threads) as tell:
        figures = recipe.train(
            recipe.Plan(steps, seed),
            out,
            lambda p: tell(p.step, f"loss {p.loss:.3f}, after earlier layers {p.early:.3f}"),
        )
    found = ", ".join(f"{name} {of['loss']:.3f}" for name, of in figures["agreement"].items())
    print(f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; loss: {found}")
