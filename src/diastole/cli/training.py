"""What the commands of ``diastole train`` share: their options, a bar, and a model with text of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.bench.rig import Rig
    from diastole.recipes.own_text import Texts
    from diastole.slots import Facts

Steps = Annotated[int, typer.Option(min=1, help="of training")]
Own = Annotated[Path, typer.Option(help="text of the model itself: a file of [bold]train own-text[/]")]
Model = Annotated[str, typer.Option(help="asset, GGUF file or directory")]
Out = Annotated[Path | None, typer.Option(help="file to write; else one beside the model's")]
Kept = Annotated[
    Path | None, typer.Option(help="file to write; else one beside the model's; a training begun there goes on")
]
Folder = Annotated[Path, typer.Option(help="directory of the model; a training begun there goes on")]
Seed = Annotated[int, typer.Option(min=0, help="of data and weights")]
Threads = Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")]
Tell = Callable[[int, str], None]  # how far it is, and what it says
EVERY = 50  # steps, after which what is said stays on the screen


@contextmanager
def telling(total: int, threads: int, every: int = EVERY) -> Iterator[Tell]:
    """A progress bar, and torch's threads."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diastole.kernels.table import physical_cores

    torch.set_num_threads(threads or physical_cores())
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task("", total=total)

        def tell(done: int, said: str) -> None:
            before = int(bar.tasks[work].completed)
            bar.update(work, completed=done, description=said)
            if said and done // every > before // every:
                bar.console.print(f"{done:,} of {total:,}: {said}", highlight=False)

        yield tell


@dataclass(frozen=True, slots=True)
class Bench:
    """What a recipe for a model's own helper is handed."""

    rig: Rig
    facts: Facts
    tell: Tell

    def place(self, technique: str, out: Path | None) -> Path:
        """Where what is trained goes."""
        from diastole.weights import calibration

        return out or calibration.beside(technique, self.facts)

    def keep(self, technique: str, tensors: Mapping[str, Any], figures: Mapping[str, Any], place: Path) -> None:
        """Write what was trained, and say of what it is."""
        from diastole.weights import calibration

        said = {name: str(value) for name, value in figures.items()}
        calibration.Calibration(tensors, said | calibration.about(technique, self.facts)).write(place)


@contextmanager
def bench(model: str, threads: int, total: int, every: int = EVERY, context: int = 0) -> Iterator[Bench]:
    """The model, for contexts of so many tokens (0: as many as it takes), and a bar."""
    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.bench.rig import Rig

    with (
        closing(open_model(resolve(model))) as checkpoint,
        Rig(model, threads=threads, context=context) as rig,
        telling(total, threads, every) as tell,
    ):
        yield Bench(rig, rig.decoder.facts(checkpoint), tell)


def text_of(model: str, own: Path) -> Texts:
    """A model's own text.

    Raises:
        UserError: it is another model's, or no such file.
    """
    from diastole.assets import resolve
    from diastole.assets.models import open_model
    from diastole.recipes.own_text import Texts

    texts = Texts.read(own)
    with closing(open_model(resolve(model))) as checkpoint:
        texts.expect(checkpoint.fingerprint, own)
    return texts


def numbers(text: str) -> tuple[int, ...]:
    """20+22+24 taken apart.

    Raises:
        UserError: the text is not of this form.
    """
    try:
        return tuple(int(n) for n in text.split("+"))
    except ValueError:
        raise UserError(
            f"--layers must be numbers with + between, such as 20+22+24, not {text!r:.40}", param="layers"
        ) from None
