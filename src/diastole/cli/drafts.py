"""``diastole bench drafts``."""

from __future__ import annotations

import json as jsonlib
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.rows import numbers


def drafts(
    use: Annotated[
        list[str] | None, typer.Option(help="drafter, with + more techniques beside it; may be repeated")
    ] = None,
    work: Annotated[
        str, typer.Option(help="kinds of requests: copy, edit, code, summary, rag, chat, math, translate")
    ] = "copy,edit,summary,chat",
    streams: Annotated[str, typer.Option(help="numbers of streams at once")] = "1",
    count: Annotated[int, typer.Option(min=1, help="requests of each kind")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="of the answers")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, max=32, help="turns of each")] = 3,
    data: Annotated[Path, typer.Option(help="folder with Spec-Bench's questions")] = Path("../shared/data"),
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What drafts bring by kind of work and number of streams, beside the plain engine, taking turns.

    Every text is compared with the plain engine's, token by token.
    """
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from diastole.bench.drafts import PLAIN, Bench, Cell
    from diastole.bench.workloads import requests
    from diastole.llm import LLM
    from diastole.params import SamplingParams

    widths = numbers("streams", streams, 1024)
    sides = {u: u.split("+") for u in use or ["auto"]}
    params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=0, ignore_eos=True)
    cells: list[Cell] = []
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        engines = {
            name: stack.enter_context(LLM(model, threads=threads, use=tuple(own), max_streams=max(widths)))
            for name, own in {PLAIN: [], **sides}.items()
        }
        bench = Bench(engines, params)
        voice = engines[PLAIN].voice
        for kind in work.split(","):
            asked = [a.ids(voice) for a in requests(kind, max(count, max(widths)), voice.tokenizer, data)]
            for n in widths:
                runs = rounds * len(bench.engines) * (len(asked) // n)
                task = bar.add_task(f"{kind}, {n} streams", total=runs)
                cells.append(bench.cell(kind, asked, n, rounds, lambda task=task: bar.advance(task)))  # type: ignore[misc]
                bar.remove_task(task)
    if json:
        print(jsonlib.dumps([asdict(c) for c in cells]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("work", "streams", "drafter"):
        table.add_column(name, no_wrap=True)
    for name in ("tokens/s", "times", "tokens/step", "right", "guesses/step", "texts that differ"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in cells:
        for name, side in c.sides.items():
            ratios = sorted(c.ratios(name))
            drafts = side.drafted > 0
            table.add_row(
                c.work,
                str(c.streams),
                name,
                f"{side.tokens * c.streams / sum(side.seconds):,.0f}",
                "" if name == PLAIN else f"{c.speedup(name):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                f"{side.per_step:.2f}",
                f"{side.rate:.0%}" if drafts else "",
                f"{side.drafted / side.steps:.1f}" if drafts else "",
                "" if name == PLAIN else str(side.different),
            )
    out = Console()
    out.width = max(out.width, 110)
    out.print(table)
