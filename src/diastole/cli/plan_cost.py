"""``diastole plan cost``."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diastole.sim.step_costs import Device, Model


def cost(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="config.json, its directory, or a known model: step-3, deepseek-v3, …"),
    ] = "step-3",
    devices: Annotated[
        Path | None, typer.Option(help="TOML file of devices, their prices and peaks; else those of Step-3's report")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="tokens that each stream has absorbed")] = 8192,
    kv_bytes: Annotated[float, typer.Option(help="bytes of one number of the cache")] = 1.0,
    tpot: Annotated[float, typer.Option(help="seconds per output token, for the bound that the network sets")] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What a decoded token costs on devices at their peaks, together and with attention and FFN apart: predicted from
    the model's configuration (Step-3, arXiv 2507.19427), not measured."""
    from diastole.sim import step_configs
    from diastole.sim.step_costs import DEVICES
    from diastole.types import UserError

    if not 0 < tpot < 3600:
        raise UserError(f"--tpot must be between 0 and 3600 seconds, not {tpot}", param="tpot")
    of = step_configs.model(model)
    known = DEVICES if devices is None else step_configs.devices(devices)
    found = _found(of, known, context, kv_bytes, tpot)
    if json:
        print(jsonlib.dumps(found))
        return
    _show(found)


def _found(of: Model, known: tuple[Device, ...], context: int, kv_bytes: float, tpot: float) -> dict[str, Any]:
    from diastole.sim.step_costs import apart, least_sparsity, together

    work = of.work(context, kv_bytes)
    best = apart(work, known)
    return {
        "model": of.name,
        "context": context,
        "parameters": of.parameters,
        "active_parameters": of.active_parameters,
        "sparsity": of.sparsity,
        **work._asdict(),
        "intensity": work.intensity,
        "apart": {**best._asdict(), "dollars_per_million": best.per_million},
        "devices": [
            {
                "name": d.name,
                "balance": d.flops / d.bandwidth,
                "dollars_per_million": together(work, d).per_million,
                "attention": 1e6 * d.attending(work),
                "ffn": 1e6 * d.feeding(work),
                "dense_batch": d.dense_batch,
                "least_sparsity": least_sparsity(of, d, tpot) if d.network else None,
            }
            for d in known
        ],
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    billions = f"{found['parameters'] / 1e9:.3g} G parameters, {found['active_parameters'] / 1e9:.3g} G active"
    console.print(f"{found['model']}: {billions}, sparsity {found['sparsity']:.3f}")
    console.print(
        f"A token at {found['context']:,} tokens: {found['kv_bytes']:.3g} B of cache; FLOP: attention "
        f"{found['attention']:.3g}, projections {found['linear']:.3g}, FFN {found['ffn']:.3g}; "
        f"not in the costs: router and head, {found['outside']:.3g}"
    )
    console.print(f"Attention's intensity: {found['intensity']:.3g} FLOP/B\n")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    for name in ("FLOP/B", "$ per 1M tokens", "of it attention", "FFN", "dense batch", "least sparsity"):
        table.add_column(name, justify="right")
    for d in found["devices"]:
        least = d["least_sparsity"]
        table.add_row(
            d["name"],
            f"{d['balance']:.0f}",
            *(f"{d[key]:.4g}" for key in ("dollars_per_million", "attention", "ffn")),
            f"{d['dense_batch']:.0f}",
            "" if least is None else f"{least:.3f}" + (" !" if least > found["sparsity"] else ""),
        )
    console.print(table)
    best = found["apart"]
    console.print(
        f"\nApart, attention on {best['attention_on']} and FFN on {best['ffn_on']}: "
        f"[bold]{best['dollars_per_million']:.3g} $ per 1M tokens[/], predicted at peak rates"
    )
    starved = [d["name"] for d in found["devices"] if (d["least_sparsity"] or 0) > found["sparsity"]]
    if starved:
        console.print(
            f"[yellow]! the model is sparser than the network of {', '.join(starved)} can feed[/]: its FFN devices wait"
        )
