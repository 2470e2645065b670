"""``diastole train lexical-units``: a small model that reads placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def lexical_units(
    out: Annotated[Path, typer.Option(help="directory of both models; a training begun there goes on")] = Path(
        "lexical-units"
    ),
    steps: Annotated[int, typer.Option(min=1, help="on text, of 4,096 tokens")] = 1_400,
    tune_steps: Annotated[int, typer.Option(min=1, help="on text with placeholders")] = 500,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="least probability of a unit's followers")] = 0.9,
    max_unit: Annotated[int, typer.Option(min=2, max=16, help="tokens of a unit, at most")] = 6,
    beyond: Annotated[int, typer.Option(min=0, max=15, help="placeholders beyond a unit's end; the paper's: 0")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="of data and weights")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """A small Llama trained on predictable text, then tuned to fill placeholders, for lexical-unit-decoding."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diastole.kernels.table import physical_cores
    from diastole.recipes import lexical_units as recipe

    torch.set_num_threads(threads or physical_cores())
    plan = recipe.Plan(steps, tune_steps, seed, alpha=alpha, max_unit=max_unit, beyond=beyond)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = {"untuned": bar.add_task("text", total=steps), "tuned": bar.add_task("units", total=tune_steps)}

        def tell(p: recipe.Progress) -> None:
            bar.update(work[p.stage], completed=p.step, description=f"{p.stage}, loss {p.loss:.3f}")
            if p.step % 50 == 0:
                bar.console.print(f"{p.stage}, step {p.step}: loss {p.loss:.3f}", highlight=False)

        figures = recipe.train(plan, out, tell)
    minutes, parameters = figures["seconds"] / 60, figures["parameters"]
    print(f"{out}/untuned and {out}/tuned: {parameters:,} parameters, {minutes:.1f} minutes")
    print(f"units of {figures['mean_unit']:.2f} tokens; {figures['right']:.1%} of placeholders are right on new text")
