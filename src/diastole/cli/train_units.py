"""``diastole train lexical-units``: a small model that reads placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.training import Seed, Threads, telling


def lexical_units(
    out: Annotated[Path, typer.Option(help="directory of both models; a training begun there goes on")] = Path(
        "lexical-units"
    ),
    steps: Annotated[int, typer.Option(min=1, help="on text, of 4,096 tokens")] = 1_400,
    tune_steps: Annotated[int, typer.Option(min=1, help="on text with placeholders")] = 500,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="least probability of a unit's followers")] = 0.9,
    max_unit: Annotated[int, typer.Option(min=2, max=16, help="tokens of a unit, at most")] = 6,
    beyond: Annotated[int, typer.Option(min=0, max=15, help="placeholders beyond a unit's end; the paper's: 0")] = 0,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """A small Llama trained on predictable text, then tuned to fill placeholders, for lexical-unit-decoding."""
    from diastole.recipes import lexical_units as recipe

    plan = recipe.Plan(steps, tune_steps, seed, alpha=alpha, max_unit=max_unit, beyond=beyond)
    before = {"untuned": 0, "tuned": steps}  # steps, by stage
    with telling(steps + tune_steps, threads) as tell:
        figures = recipe.train(plan, out, lambda p: tell(before[p.stage] + p.step, f"{p.stage}, loss {p.loss:.3f}"))
    minutes, parameters = figures["seconds"] / 60, figures["parameters"]
    print(f"{out}/untuned and {out}/tuned: {parameters:,} parameters, {minutes:.1f} minutes")
    print(f"units of {figures['mean_unit']:.2f} tokens; {figures['right']:.1%} of placeholders are right on new text")
