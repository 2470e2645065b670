"""``diastole train mfa``: small models whose attentions keep equally much of each token."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.training import Seed, Tell, Threads, telling

if TYPE_CHECKING:
    from diastole.recipes.mfa import Progress


def mfa(
    kinds: Annotated[str, typer.Option(help="which of them, with commas between")] = "mha,gqa,mqa,mfa",
    out: Annotated[Path, typer.Option(help="directory of all; trainings begun there go on")] = Path("step-3-models"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Four small models with equal caches, for the reproduction of step-3: an hour each on one busy core."""
    from diastole.recipes import mfa as recipe

    plans = [recipe.Plan(kind, recipe.shape(kind), seed=seed) for kind in kinds.split(",")]
    steps = sum(plan.steps for plan in plans)
    with telling(steps, threads) as tell:
        for i, plan in enumerate(plans):
            before, place = sum(p.steps for p in plans[:i]), recipe.place(out, plan)
            figures = recipe.train(plan, place, partial(_tell, tell, before, plan.kind))
            minutes = figures["seconds"] / 60
            print(f"{place}: {figures['parameters']:,} parameters, {minutes:.1f} minutes, loss {figures['loss']:.3f}")


def _tell(tell: Tell, before: int, kind: str, progress: Progress) -> None:
    tell(before + progress.step, f"{kind}, loss {progress.loss:.3f}")
