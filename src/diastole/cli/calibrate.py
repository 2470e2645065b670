"""``diastole calibrate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.text import Tokenizer


def calibrate(
    name: Annotated[str, typer.Argument(help="technique that needs it, such as double-sparsity")],
    model: Annotated[str, typer.Argument(help="asset, GGUF file or directory")] = "smollm2-135m",
    texts: Annotated[
        list[Path] | None, typer.Option(help="file of plain text, may be repeated; else documentation of this machine")
    ] = None,
    own: Annotated[
        Path | None, typer.Option(help="for what looks at the model's own text: a file of [bold]train own-text[/]")
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="of the texts to look at, at most; 0: as many as usual")] = 0,
    out: Annotated[Path | None, typer.Option(help="file to write; else one beside the model's")] = None,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """Measure of a model, once, what a technique has to know before it can act; takes minutes."""
    from rich.console import Console
    from rich.progress import Progress

    from diastole.assets import resolve
    from diastole.assets.models import open_model, tokenizer_of
    from diastole.bench.rig import Rig
    from diastole.calibrate import job
    from diastole.weights import calibration

    module = job.of(name)
    technique = name.replace("_", "-")
    path = resolve(model)
    checkpoint = open_model(path)
    if getattr(module, "OWN", False):
        ids, where = _own(own, texts or [], tokenizer_of(path), checkpoint.fingerprint, tokens or module.TOKENS)
    else:
        ids, where = _read(tokenizer_of(path), texts or [], tokens or module.TOKENS)
    with (
        Rig(
            model,
            kv="f32",
            context=module.CONTEXT + 1,  # room for an answer
            threads=threads,
        ) as rig,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        facts = rig.decoder.facts(checkpoint)
        work = bar.add_task(f"{technique}: {len(ids):,} tokens", total=len(ids))
        said = {"texts": where, "rope": _rope(checkpoint.config)}
        found = job.calibrate(technique, facts, job.Job(rig, ids, lambda n: bar.advance(work, n)), said)
    place = out or calibration.beside(technique, facts)
    found.write(place)
    typer.echo(f"written: {place} ({len(ids):,} tokens of {where})")


def _own(
    file: Path | None, texts: list[Path], tokenizer: Tokenizer, fingerprint: str, most: int
) -> tuple[list[int], str]:
    """Text of the model itself, and other text behind it."""
    from diastole.recipes.own_text import Texts

    if file is None and not texts:
        command = "diastole train own-text --out FILE"
        raise UserError(f"name a file of the model's own text with --own; make one with: {command}", param="own")
    ids: list[int] = []
    if file is not None:
        found = Texts.read(file)
        found.expect(fingerprint, file)
        ids = found.ids.tolist()
    more, where = _read(tokenizer, texts, most) if texts else ([], "")
    return [*ids, *more][:most], ", ".join(n for n in (file and file.name, where) if n)


def _read(tokenizer: Tokenizer, files: list[Path], most: int) -> tuple[list[int], str]:
    from diastole.bench.longtext import Corpus

    if not files:
        return Corpus.of(tokenizer).ids[:most], "documentation of this machine"
    ids: list[int] = []
    for path in files:
        try:
            ids += tokenizer.encode(path.read_text("utf-8"), special=False)
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--texts {path} cannot be read as text: {e}", param="texts") from None
    return ids[:most], ", ".join(p.name for p in files)


def _rope(config: Mapping[str, Any]) -> str:
    from diastole.nn.family import rope_base, rope_scaling

    return f"base {rope_base(config):g}, scaling {dict(rope_scaling(config) or {}) or 'none'}"
