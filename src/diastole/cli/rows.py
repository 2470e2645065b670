"""``diastole bench rows``."""

from __future__ import annotations

import json as jsonlib
from statistics import median
from typing import Annotated

import typer

from diastole.types import UserError

MOST = 512  # of a step


def rows(
    model: Annotated[
        str, typer.Option("--model", "-m", help="asset, GGUF file, directory, or a shape: 0.5b-random, 1b-random")
    ] = "smollm2-135m",
    of: Annotated[str, typer.Option(help="rows of a step, with commas between")] = "1,2,3,4,5,6,7,8,12,16,17,32,64",
    context: Annotated[int, typer.Option(min=0, help="tokens that each stream has absorbed")] = 512,
    streams: Annotated[int, typer.Option(min=1, max=256, help="streams, each with so many rows")] = 1,
    times: Annotated[int, typer.Option(min=1, help="turns of each")] = 15,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What a step with several rows of a stream takes beside one row: what guesses have to bring in to pay."""
    from rich.console import Console
    from rich.table import Table

    from diastole.bench.compare import model_file
    from diastole.bench.shapes import SHAPES
    from diastole.clock import RealClock
    from diastole.engine.profile import seconds
    from diastole.llm import LLM
    from diastole.state.pages import PAGE

    sizes = numbers("of", of, MOST)
    room = context + max(sizes)
    file = str(model_file(model)) if model in SHAPES else model
    with LLM(file, threads=threads, max_streams=streams) as llm:
        service = llm.engine.services[0]
        limit, (_, pages) = service.loop.context, service.pages()  # type: ignore[attr-defined]
        if room > limit or streams * -(-room // PAGE) > pages:
            raise UserError(
                f"--context {context} with up to {max(sizes)} rows of {streams} streams has no room: "
                f"a stream may have {limit} tokens, all together {pages * PAGE}",
                param="context",
            )
        with Console(stderr=True).status("measuring"):
            took = seconds(service, RealClock(), streams, context, sizes, times)
    found = {n: median(took[n]) for n in sizes}
    if json:
        print(jsonlib.dumps({n: {"seconds": s, "times": s / found[sizes[0]]} for n, s in found.items()}))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rows", "ms", f"times {sizes[0]}", "ms of each further row"):
        table.add_column(name, justify="right", no_wrap=True)
    for n, s in found.items():
        further = f"{1e3 * (s - found[sizes[0]]) / (n - sizes[0]):.2f}" if n > sizes[0] else ""
        table.add_row(str(n), f"{1e3 * s:.2f}", f"{s / found[sizes[0]]:.2f}", further)
    Console().print(table)


def numbers(flag: str, text: str, most: int) -> list[int]:
    """Raises:
    UserError: these are no numbers from 1 to ``most``.
    """
    try:
        found = sorted({int(n) for n in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > most:
        raise UserError(f"--{flag} must be numbers from 1 to {most} with commas between, not {text!r:.40}", param=flag)
    return found
