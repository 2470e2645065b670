"""``diastole check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diastole.bench.pairs import Trial, Workbench


def check(
    model: Annotated[str | None, typer.Option("--model", "-m", help="also verify this model's files")] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="also run every pair of techniques, and print which go together"),
    ] = False,
) -> None:
    """Say what this installation runs on, import every architecture, run every technique on a tiny model. Exits 1 on a
    defect."""
    from diastole import registry
    from diastole.bench.pairs import Workbench, singles
    from diastole.kernels.table import load

    ops = load()
    print(f"kernels: {ops.name}")
    wrong = 0
    for info in registry.models():
        wrong += _tried(f"architecture {info.name}", lambda name=info.name: registry.architecture(name))
    bench = Workbench()
    alone = singles(bench)
    for trial in alone:
        wrong += _told("technique", trial)
    if pairs:
        wrong += _pairs(bench, alone)
    if model is not None:
        _verify(model)
    if wrong:
        raise typer.Exit(1)


def _told(what: str, trial: Trial) -> int:
    failed = trial.answer == "FAILED"
    typer.secho(f"{what} {trial}", fg="red" if failed else None, err=failed)
    return failed


def _pairs(bench: Workbench, alone: list[Trial]) -> int:
    from collections import Counter

    from diastole.bench.pairs import pairs

    wrong, answers = 0, Counter[str]()
    for trial in pairs(bench, alone):
        wrong += _told("pair", trial)
        answers[trial.answer] += 1
    print(f"pairs: {answers['yes']} work, {answers['refused']} are refused, {answers['FAILED']} fail")
    return wrong


def _tried(what: str, action: Any) -> int:
    try:
        action()
    except Exception as e:  # a defect of ours, whatever it is: say which file
        typer.secho(f"{what}: {type(e).__name__}: {e}", fg="red", err=True)
        return 1
    print(f"{what}: ok")
    return 0


def _verify(model: str) -> None:
    from diastole import registry
    from diastole.assets import pull, resolve
    from diastole.assets.catalog import ASSETS
    from diastole.assets.models import open_model, tokenizer_of

    path = pull(model, thorough=True) if model in ASSETS else resolve(model)
    checkpoint = open_model(path)
    registry.model(str(checkpoint.config["model_type"]))
    tokenizer = tokenizer_of(path)
    names = checkpoint.names()
    print(
        f"model {path.name}: {checkpoint.config['model_type']}, {len(names)} tensors, {tokenizer.vocab_size} tokens, "
        f"context {checkpoint.config.get('max_position_embeddings')}: ok"
    )
    checkpoint.close()
