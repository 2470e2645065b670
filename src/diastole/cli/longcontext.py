"""``diastole bench longcontext``."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def longcontext(
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    use: Annotated[list[str] | None, typer.Option(help='technique, "name:knob=value"; may be repeated')] = None,
    kv: Annotated[str, typer.Option(help="form of keys and values of both; auto: as each prefers")] = "auto",
    lengths: Annotated[str, typer.Option(help="tokens of the contexts; k is 1,000")] = "1k,2k,4k,7k",
    tasks: Annotated[str, typer.Option(help="names with commas between; empty: all on real text")] = "",
    domain: Annotated[str, typer.Option(help="of the prose: documentation, code or licences")] = "documentation",
    cases: Annotated[int, typer.Option(min=1, help="contexts per task and length")] = 2,
    seed: Annotated[int, typer.Option(help="of the cases")] = 0,
    kernels: Annotated[str, typer.Option(help="as in `diastole serve`")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What a stream still knows of a long prompt: dense attention and a stack of techniques on the same cases."""
    from rich.console import Console
    from rich.progress import Progress

    from diastole.assets import resolve
    from diastole.assets.models import tokenizer_of
    from diastole.bench.longcontext import study as suite
    from diastole.bench.longtext import Corpus
    from diastole.bench.rig import Rig

    corpus = Corpus.of(tokenizer_of(resolve(model)), domain)
    planned = list(suite.cases(suite.chosen(tasks), suite.lengths(lengths), corpus, cases, seed))
    context, streams = suite.room(planned)
    stack = tuple(use or ())
    with (
        Rig(model, kv=kv, context=context, streams=streams, threads=threads, kernels=kernels) as dense,
        Rig(model, stack, kv=kv, context=context, streams=streams, threads=threads, kernels=kernels) as own,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        work = bar.add_task("", total=sum(len(c.context) for p in planned for c in p.cases))
        found = []
        for done in suite.study(dense, own, planned, lambda what: bar.update(work, description=what)):
            found.append(done)
            bar.advance(work, done.length * cases)
        result = {
            "model": model,
            "use": stack,
            "kv": kv,
            "domain": domain,
            "seed": seed,
            "kernels": own.kernels,
            "bytes_per_token": {"dense": dense.bytes_per_token, "own": own.bytes_per_token},
            "tasks": [_entry(f) for f in found],
        }
    if json:
        print(jsonlib.dumps(result))
        return
    print(f"kernels {own.kernels}, {corpus.name}, {cases} contexts per task and length, seed {seed}")
    Console().print(_table(result))
    print(f"bytes per token of context: dense {dense.bytes_per_token:,.0f}, with the stack {own.bytes_per_token:,.0f}")


def _entry(found: Any) -> dict[str, Any]:
    from diastole.bench.longcontext.study import by_label, mean
    from diastole.bench.longcontext.tasks import ALL

    shows = ALL[found.task].shows
    return {
        "task": found.task,
        "length": found.length,
        "questions": len(found.own),
        "marks": {n: {"dense": mean(found.dense, n), "own": mean(found.own, n)} for n in shows},
        "by_label": {side: by_label(getattr(found, side), shows[0]) for side in ("dense", "own")},
        "each": {side: [asdict(m) for m in getattr(found, side)] for side in ("dense", "own")},
    }


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "tokens", "mark", "dense", " ".join(result["use"]) or "same stack"):
        table.add_column(name, justify="left" if name in {"task", "mark"} else "right", no_wrap=True)
    for entry in result["tasks"]:
        head = [entry["task"], f"{entry['length']:,}"]
        for name, mark in entry["marks"].items():
            table.add_row(*head, name, f"{mark['dense']:.3f}", f"{mark['own']:.3f}")
            head = ["", ""]
    return table
