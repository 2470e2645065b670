"""``diastole train longspec`` and ``specdec-pp``: a draft block, and the head that tells when it is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from diastole.cli.training import Model, Out, Own, Seed, Threads, bench, text_of


def longspec(
    own: Own,
    model: Model = "smollm2-135m",
    out: Out = None,
    steps: Annotated[int, typer.Option(min=1, help="of training, of 1,024 tokens each")] = 1_200,
    seed: Seed = 0,
    anchors: Annotated[bool, typer.Option(help="move positions, as the paper does")] = True,
    lag: Annotated[bool, typer.Option(help="let the target lag behind, as the paper does")] = True,
    threads: Threads = 0,
) -> None:
    """The draft block of longspec."""
    from diastole.recipes import longspec as recipe

    texts = text_of(model, own)
    plan = recipe.Plan(steps, seed=seed, anchors=anchors, lag=lag)
    with bench(model, threads, steps) as at:
        tensors, figures = recipe.train(
            at.rig, texts, plan, lambda p: at.tell(p.step, f"loss {p.loss:.3f}, right {p.right:.1%}")
        )
        place = at.place("longspec", out)
        at.keep("longspec", tensors, figures, place)
    minutes, right = figures["seconds"] / 60, figures["right"]
    print(f"{place}: {figures['parameters']:,} parameters, {minutes:.1f} minutes, {right:.1%} right")


def specdec_pp(
    own: Own,
    model: Model = "smollm2-135m",
    out: Out = None,
    draft: Annotated[str, typer.Option(help="file of longspec's block; empty: as [bold]longspec[/] finds it")] = "",
    positions: Annotated[int, typer.Option(min=1_000, help="guesses to learn from")] = 200_000,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The acceptance head of specdec-pp for the block of longspec."""
    from diastole.recipes import specdec_pp as recipe
    from diastole.weights.calibration import find

    texts, done = text_of(model, own), 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        at.tell(min(done, positions), "guesses")

    with bench(model, threads, positions, 50_000) as at:
        block = find("longspec", at.facts, draft)
        examples = recipe.collect(at.rig, texts, block.tensors, positions, seed, count)
        tensors, figures = recipe.train(examples, seed)
        place = at.place("specdec-pp", out)
        at.keep("specdec-pp", tensors, {**figures, "block": block.id}, place)
    print(
        f"{place}: {figures['examples']:,} guesses, {figures['right']:.1%} right; "
        f"held out: calibration error {figures['ece']:.3f}, area {figures['auc']:.3f}"
    )
