"""``diastole check``."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def check(
    model: Annotated[str | None, typer.Option("--model", "-m", help="also verify this model's files")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="print the table of techniques that go together")] = False,
) -> None:
    """Say what this installation runs on, import everything, build every pair of techniques. Exits 1 on a defect."""
    from diastole import registry
    from diastole.engine.compose import Mixed
    from diastole.kernels.table import load
    from diastole.slots import Facts
    from diastole.state.kv import PagedKV

    ops = load()
    print(f"kernels: {ops.name}")
    wrong = 0
    for info in registry.models():
        wrong += _tried(f"architecture {info.name}", lambda name=info.name: registry.architecture(name))
    for info in registry.techniques():
        wrong += _tried(f"technique {info.name}", lambda name=info.name: registry.load(registry.Spec.parse(name)))
    defaults: dict[str, Any] = {"kv": PagedKV(), "compose": Mixed(512)}
    rows = registry.pairs(defaults, Facts(frozenset({"paged_kv"})))
    built = sum(not why for *_, why in rows)
    print(f"pairs of techniques: {built} build together, {len(rows) - built} are refused")
    if pairs:
        for one, other, why in rows:
            print(f"  {one} + {other}: {why or 'yes'}")
    if model is not None:
        _verify(model)
    if wrong:
        raise typer.Exit(1)


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
    from diastole.frontend.voice import tokenizer_of
    from diastole.weights import open_checkpoint

    path = pull(model, thorough=True) if model in ASSETS else resolve(model)
    checkpoint = open_checkpoint(path)
    registry.model(str(checkpoint.config["model_type"]))
    tokenizer = tokenizer_of(path)
    names = checkpoint.names()
    print(
        f"model {path.name}: {checkpoint.config['model_type']}, {len(names)} tensors, {tokenizer.vocab_size} tokens, "
        f"context {checkpoint.config.get('max_position_embeddings')}: ok"
    )
    checkpoint.close()
