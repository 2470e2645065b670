"""``diastole train longspec`` and ``specdec-pp``: a draft block, and the head that tells when it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diastole.bench.rig import Rig
    from diastole.recipes.own_text import Texts
    from diastole.slots import Facts

Own = Annotated[Path, typer.Option(help="text of the model itself: a file of [bold]train own-text[/]")]
Model = Annotated[str, typer.Option(help="asset, GGUF file or directory")]
Out = Annotated[Path | None, typer.Option(help="file to write; else one beside the model's")]
Seed = Annotated[int, typer.Option(min=0, help="of weights and windows")]
Threads = Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a recipe is handed."""

    rig: Rig
    texts: Texts
    facts: Facts
    tell: Callable[[int, str], None]  # how far it is, and what it says

    def keep(self, technique: str, tensors: Mapping[str, Any], figures: Mapping[str, Any], out: Path | None) -> Path:
        """Write what was trained, and say of what it is."""
        from diastole.weights import calibration

        place = out or calibration.beside(technique, self.facts)
        said = {name: str(value) for name, value in figures.items()}
        calibration.Calibration(tensors, {**said, **calibration.about(technique, self.facts)}).write(place)
        return place


@contextmanager
def bench(model: str, own: Path, threads: int, total: int, every: int) -> Iterator[Bench]:
    """The model with its own text, and a bar; every so many steps what is said stays on the screen."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.bench.rig import Rig
    from diastole.kernels.table import physical_cores
    from diastole.recipes.own_text import Texts

    torch.set_num_threads(threads or physical_cores())
    checkpoint, texts = open_model(resolve(model)), Texts.read(own)
    texts.expect(checkpoint.fingerprint, own)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Rig(model, threads=threads) as rig, Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task("", total=total)

        def tell(done: int, said: str) -> None:
            before = int(bar.tasks[work].completed)
            bar.update(work, completed=done, description=said)
            if done // every > before // every:
                bar.console.print(f"{done:,}: {said}", highlight=False)

        yield Bench(rig, texts, rig.decoder.facts(checkpoint), tell)
    checkpoint.close()


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

    with bench(model, own, threads, steps, 50) as at:
        plan = recipe.Plan(steps, seed=seed, anchors=anchors, lag=lag)
        tensors, figures = recipe.train(
            at.rig, at.texts, plan, lambda p: at.tell(p.step, f"loss {p.loss:.3f}, right {p.right:.1%}")
        )
        place = at.keep("longspec", tensors, figures, out)
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

    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        at.tell(min(done, positions), "guesses")

    with bench(model, own, threads, positions, 50_000) as at:
        block = find("longspec", at.facts, draft)
        examples = recipe.collect(at.rig, at.texts, block.tensors, positions, seed, count)
        tensors, figures = recipe.train(examples, seed)
        place = at.keep("specdec-pp", tensors, {**figures, "block": block.id}, out)
    print(
        f"{place}: {figures['examples']:,} guesses, {figures['right']:.1%} right; "
        f"held out: calibration error {figures['ece']:.3f}, area {figures['auc']:.3f}"
    )
