"""``diastole plan``: where prefill and decode should run on GPUs, by simulation."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.types import SLO, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from diastole.sim.load import Lengths
    from diastole.sim.place import Option, Plan, Planner

app = typer.Typer(
    invoke_without_command=True,
    help="Where prefill and decode should run on GPUs, and what that costs: simulated, nothing is run.",
)
AFFINITIES = ("high", "low")
SPREAD = 1.0  # of lengths whose spread nobody tells
WIDTH = 110  # columns that the table needs at least


@app.callback()
def plan(
    context: typer.Context,
    gpus: Annotated[int, typer.Option(min=2, max=4096, help="GPUs that there are")] = 4,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=1024, help="of them in one machine")] = 8,
    model: Annotated[str, typer.Option(help="a model that is known, or its config.json")] = "opt-13b",
    hardware: Annotated[str, typer.Option(help="a GPU that is known, or a TOML file")] = "a100-80g",
    slo_ttft: Annotated[float | None, typer.Option(help="most seconds to the first token")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="most seconds per further token, on average")] = None,
    attainment: Annotated[float, typer.Option(help="share of requests that must keep both promises")] = 0.9,
    rate: Annotated[
        float | None, typer.Option(help="requests per second to be served; else as many as possible")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="mean tokens IN:OUT[:SPREAD], or a CSV file with ContextTokens,GeneratedTokens")
    ] = "755:200",
    affinity: Annotated[str, typer.Option(help="high: caches may move between nodes; low: they stay in one")] = "high",
    network: Annotated[float | None, typer.Option(help="Gbit/s between nodes; else the hardware's")] = None,
    requests: Annotated[int, typer.Option(min=20, max=100_000, help="of each simulated run")] = 300,
    tolerance: Annotated[float, typer.Option(help="of goodputs, in requests/s per GPU")] = 0.25,
    ceiling: Annotated[float, typer.Option(help="requests/s per GPU beyond which nothing is looked for")] = 16.0,
    seed: Annotated[int, typer.Option(min=0, help="of lengths and arrivals")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Find the placement that serves most requests per GPU within both promises, by simulation.

    Prefill and decode get instances of their own, each with its parallelism; the best way to do both at one place is
    shown beside it. Nothing is run: times are published fits, or a roofline of published peaks.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from diastole.sim.goodput import Search
    from diastole.sim.hardware import hardware as gpu_of
    from diastole.sim.place import Planner
    from diastole.sim.profile import profile
    from diastole.sim.shape import shape
    from diastole.sim.systems import Systems
    from diastole.sim.timeline import Joint

    slo = SLO(_positive("slo-ttft", slo_ttft), _positive("slo-tpot", slo_tpot))
    if not 0 < attainment <= 1:
        raise UserError(f"--attainment must be above 0 and at most 1, not {attainment:g}", param="attainment")
    if affinity not in AFFINITIES:
        raise UserError(f"--affinity must be one of {', '.join(AFFINITIES)}, not {affinity!r:.40}", param="affinity")
    gpu = gpu_of(hardware)
    known = profile(shape(model), gpu)
    drawn = _lengths(lengths, known.shape.context)
    between = gpu.network if network is None else _positive("network", network) * 1e9 / 8
    bandwidth = gpu.link if affinity == "low" or gpus <= gpus_per_node else between
    search = Search(
        drawn.draw(requests, seed),
        slo,
        Joint(attainment),
        _positive("ceiling", ceiling),
        _positive("tolerance", tolerance),
        seed,
    )
    err = Console(stderr=True)
    with _bar(err, json) as told:
        asked = None if rate is None else _positive("rate", rate)
        planner = Planner(Systems(known, bandwidth), search, gpus, gpus_per_node, asked, told)
        found = planner.high() if affinity == "high" else planner.low()
        together = planner.colocated()
    if json:
        print(jsonlib.dumps(_json(found, together, planner, drawn), ensure_ascii=False))
        return
    _print(Console(highlight=False), found, together, planner, drawn)


def _positive(flag: str, value: float | None) -> float:
    if value is None:
        raise UserError(f"give --{flag}, a promise in seconds such as 0.2", param=flag)
    if not (math.isfinite(value) and 0 < value <= 1e9):
        raise UserError(f"--{flag} must be above 0, not {value:g}", param=flag)
    return value


def _lengths(text: str, longest: int) -> Lengths:
    from diastole.sim.load import LogNormal, read_lengths

    try:
        numbers = [float(n) for n in text.split(":")]
    except ValueError:
        return read_lengths(Path(text), longest)
    if len(numbers) not in (2, 3):
        raise UserError(f"--lengths must be IN:OUT or IN:OUT:SPREAD, or a CSV file, not {text!r:.60}", param="lengths")
    prompt, output, spread = (*numbers, SPREAD)[:3]
    return LogNormal(prompt, output, spread, longest)


@contextmanager
def _bar(err: Console, silent: bool) -> Iterator[Callable[[int], Callable[[], None]]]:
    """What a planner tells its progress to; a bar for people who watch."""
    from rich.progress import Progress

    with Progress(console=err, transient=True, disable=silent or not err.is_terminal) as bars:
        yield lambda total: partial(bars.advance, bars.add_task("simulating", total=total))


def _print(out: Console, found: Plan, together: Sequence[Option], planner: Planner, lengths: Lengths) -> None:
    from rich.table import Table

    out.width = max(out.width, WIDTH)
    slo, systems, requests = planner.search.slo, planner.systems, len(planner.search.lengths)
    known = systems.profile
    share = planner.share
    out.print(f"[bold]simulated[/], nothing was run: {known.shape.name} on {known.hardware.name}")
    out.print(f"times      {known.source}", style="dim")
    out.print(f"load       {requests} requests of {lengths}, Poisson, seed {planner.search.seed}", style="dim")
    out.print(
        f"promises   TTFT {slo.first:g} s and TPOT {slo.gap:g} s, both kept by {share:.0%} of requests", style="dim"
    )
    out.print(f"caches     {known.shape.token_bytes / 1024:g} KiB per token over {systems.bandwidth / 1e9:g} GB/s")
    out.print()
    many = f"{found.replicas} times " if found.replicas > 1 else ""
    out.print(f"[bold]best (simulated): {many}{found.chosen}[/], {found.gpus} of {planner.gpus} GPUs")
    if found.attained is not None:
        kept = f"{found.attained:.1%} of requests keep both promises at {planner.rate:g} requests/s (simulated)"
        out.print(kept if found.attained >= share else f"[yellow]{kept}, fewer than {share:.0%}[/]")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column, justify in (
        ("placement", "left"),
        ("GPUs", "right"),
        ("requests/s per GPU (simulated)", "right"),
        ("each promise by itself", "right"),
        ("longest gap, p99", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for o in (*found.options, *together):
        stall = "" if o.stall is None else f"{1e3 * o.stall:.0f} ms"
        table.add_row(
            o.what, str(o.gpus), f"{o.goodput:.2f}", f"{o.apart:.2f}", stall, style="dim" if o.goodput == 0 else ""
        )
    out.print(table)
    best, other = found.options[0], max(together, key=lambda o: o.goodput)
    if other.goodput > best.goodput:
        message = f"{other.what} serves more per GPU here: {other.goodput:.2f} against {best.goodput:.2f} (simulated)"
        out.print(f"[yellow]{message}[/]")
    out.print(f"to {planner.search.tolerance:g} requests/s per GPU; 0.00: less than that", style="dim")


def _json(found: Plan, together: Sequence[Option], planner: Planner, lengths: Lengths) -> dict[str, object]:
    def told(option: Option) -> dict[str, object]:
        return {
            "placement": option.what,
            "gpus": option.gpus,
            "goodput_per_gpu": option.goodput,
            "goodput_per_gpu_each_promise_by_itself": option.apart,
            "longest_gap_p99_seconds": option.stall,
        }

    return {
        "simulated": True,
        "times": planner.systems.profile.source,
        "lengths": str(lengths),
        "best": str(found.chosen),
        "replicas": found.replicas,
        "gpus": found.gpus,
        "attained": found.attained,
        "options": [told(o) for o in found.options],
        "colocated": [told(o) for o in together],
    }
