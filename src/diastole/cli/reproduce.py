"""``diastole reproduce``."""

from __future__ import annotations

import json as jsonlib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from diastole.papers import Paper
    from diastole.reproduce.harness import Outcome
    from diastole.reproduce.progress import Shown


def reproduce(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="papers, as `diastole papers` names them; or all")
    ],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick/--full", help="smaller sizes within 60 s, or (the default) the whole within 30 min, on two cores"
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="of all that is random")] = 0,
    save: Annotated[bool, typer.Option("--save", help="write the result to NAME.json")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="draw its curves to NAME.png")] = False,
    results: Annotated[Path, typer.Option(help="folder of both")] = Path("results"),
    json: Annotated[
        bool, typer.Option("--json", help="print one line of JSON for each paper, and nothing else")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback when a reproduction fails")] = False,
) -> None:
    """Measure a paper's claims on this machine, beside its baseline: the claim, what is measured, what must hold.

    Exits with 0 when every inequality that decides holds, with 1 when one does not or a reproduction fails.
    """
    from rich.console import Console

    from diastole import papers
    from diastole.reproduce import harness, report
    from diastole.reproduce import plot as pictures

    wanted = papers.named(names)
    if plot:
        pictures.need()
    if save or plot:
        _folder(results)
    out, err = Console(highlight=False), Console(stderr=True)
    out.width = max(out.width, report.WIDTH)
    outcomes = []
    for paper in wanted:
        outcome = harness.run(paper, quick, seed, _shown(err, json))
        outcomes.append(outcome)
        if json:
            print(jsonlib.dumps(outcome.json(), ensure_ascii=False), flush=True)
        else:
            out.print(report.as_text(outcome))
        _tell(outcome, debug)
        if outcome.error is None:
            _keep(outcome, results, save, plot)
    if len(outcomes) > 1 and not json:
        out.print("", report.summary(outcomes), sep="\n")
    if not all(outcome.holds for outcome in outcomes):
        raise typer.Exit(1)


def _folder(results: Path) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--results {results}: {e.strerror}", param="results") from None


def _shown(err: Console, json: bool) -> Shown:
    from diastole.reproduce.progress import Bars, Silent

    return Bars(err) if err.is_terminal and not json else Silent()


def _tell(outcome: Outcome, debug: bool) -> None:
    """Of an error inside a reproduction."""
    if outcome.error is None:
        return
    paper: Paper = outcome.reproduction.paper
    if debug:
        typer.echo("".join(traceback.format_exception(outcome.error)), err=True)
    hint = "" if debug else " (--debug shows where)"
    typer.secho(f"error: {paper.name} {outcome.verdict}{hint}", fg="red", err=True)


def _keep(outcome: Outcome, results: Path, save: bool, plot: bool) -> None:
    from diastole.reproduce import harness
    from diastole.reproduce import plot as pictures

    paper, curves = outcome.reproduction.paper, outcome.study.curves
    if save:
        typer.echo(f"written: {harness.save(outcome, results)}", err=True)
    if plot and curves:
        picture = results / f"{paper.name}.png"
        pictures.draw(f"{paper.name}: {outcome.reproduction.about}", curves, picture)
        typer.echo(f"written: {picture}", err=True)
    elif plot:
        typer.echo(f"{paper.name} has no curves to draw", err=True)
