"""``diastole train``: recipes of small checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.train_drafts import longspec, specdec_pp
from diastole.cli.train_exits import exits, layerskip
from diastole.cli.train_kvp import kv_prediction
from diastole.cli.train_mfa import mfa
from diastole.cli.train_small import cache_aware_conformer, dbconformer, masked_lm, masked_smollm2, phasenet, unet
from diastole.cli.train_transfer import hidden_transfer
from diastole.cli.train_units import lexical_units
from diastole.cli.training import Folder, Model, Seed, Steps, Threads, telling

app = typer.Typer(help="Train a small checkpoint from its recipe.", no_args_is_help=True)


@app.callback()
def recipes() -> None:
    """One command per recipe."""


@app.command()
def recall(
    steps: Steps = 1_500,
    out: Folder = Path("recall"),
    layers: Annotated[int, typer.Option(min=2, max=32, help="of the model; deeper ones learn later")] = 2,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """A Llama that recalls pairs of a key and a value in up to 2,048 tokens, for the long-context suite."""
    from diastole.recipes import recall as recipe

    plan = recipe.Plan(steps, seed, shape=replace(recipe.SHAPE, layers=layers))
    with telling(steps, threads) as tell:
        figures = recipe.train(
            plan,
            out,
            lambda p: tell(p.step, f"{p.length} tokens, loss {p.loss:.3f}, right {p.accuracy:.0%}"),
        )
    shares = ", ".join(f"{share:.1%} at {n}" for n, share in figures["accuracy"].items())
    print(
        f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; right answers: {shares}"
    )


@app.command()
def own_text(
    model: Model = "smollm2-135m",
    out: Annotated[Path, typer.Option(help="file to write")] = Path("own-text.safetensors"),
    tokens: Annotated[int, typer.Option(min=1, help="of answers")] = 1_000_000,
    answer: Annotated[int, typer.Option(min=1, help="most tokens of one answer")] = 320,
    seed: Annotated[int, typer.Option(min=0, help="of requests and answers")] = 0,
    threads: Threads = 0,
) -> None:
    """Answers of a model to made-up requests, from which its drafters learn."""
    from rich.console import Console
    from rich.progress import Progress

    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.llm import LLM
    from diastole.recipes import own_text as recipe

    checkpoint = open_model(resolve(model))
    fingerprint = checkpoint.fingerprint
    checkpoint.close()
    settings = {"max_streams": recipe.TOGETHER}
    with LLM(model, threads=threads, **settings) as llm, Progress(console=Console(stderr=True)) as bar:
        work = bar.add_task(f"answers of {model}", total=tokens)
        texts = recipe.generate(llm, fingerprint, tokens, seed, lambda n: bar.advance(work, n), answer)
    texts.write(out)
    print(f"{out}: {len(texts.prompts):,} answers, {len(texts.ids):,} tokens with their requests")


OTHERS = (longspec, specdec_pp, hidden_transfer, exits, layerskip, lexical_units, kv_prediction, mfa)
for recipe in (*OTHERS, phasenet, dbconformer, cache_aware_conformer, masked_lm, masked_smollm2, unet):
    app.command()(recipe)
