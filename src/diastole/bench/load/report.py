"""What was found of a load: as a table, as JSON, and as lines of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rich.table import Table

from diastole.bench.load.judge import STALL, Capacity, Spread, Verdict
from diastole.bench.load.match import Unloaded
from diastole.bench.load.work import Load
from diastole.types import SLO

WIDTH = 150  # columns that the table needs
STEADY = 5.0  # unloaded requests' times: arrivals that last for less say little of a rate that goes on


@dataclass(slots=True)
class Found:
    """One measurement.

    Attributes:
        unit: what a level is, "requests/s" or "clients".
        levels: by rate or number of clients, by name of the target.
    """

    load: Load
    arrivals: str
    unit: str
    slo: SLO
    unloaded: Unloaded
    attainment: float
    levels: dict[float, dict[str, Verdict]] = field(default_factory=dict)
    capacities: dict[str, Capacity[Verdict]] = field(default_factory=dict)


class Line(NamedTuple):
    """Of a picture; lines of one title share axes."""

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: str
    xlabel: str
    ylabel: str


# ---- for people


def as_table(found: Found) -> Table:
    """A line for each level and target."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(found.unit, justify="right", no_wrap=True)
    table.add_column("stack", no_wrap=True)
    cached = any(v.cached for row in found.levels.values() for v in row.values())
    names = ["in time", "TTFT", "TPOT", "goodput/s", "tokens/s", "TTFT ms p50/p90/p99", "TPOT ms p50/p90/p99"]
    for name in (*names, "stalls", "longest gap ms", "failed", *(["cached"] if cached else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for level, row in sorted(found.levels.items()):
        for name, v in row.items():
            table.add_row(
                f"{level:.3g}",
                name,
                f"[bold]{v.attainment:.0%}[/]",
                f"{v.ttft_attainment:.0%}",
                f"{v.tpot_attainment:.0%}",
                f"{v.goodput:.3g}",
                f"{v.tokens_per_second:,.0f}",
                _ms(v.ttft, 0),
                _ms(v.tpot, 1),
                str(v.stalls),
                f"{v.longest_gap * 1e3:,.0f}",
                str(sum(v.failures.values())),
                *([f"{v.cached:.0%}"] if cached else []),
            )
    return table


def _ms(spread: Spread | None, digits: int) -> str:
    return "" if spread is None else "/".join(f"{x * 1e3:,.{digits}f}" for x in spread)


def promises(found: Found, given: Sequence[bool]) -> str:
    """What is promised, and where it is from.

    Args:
        given: whether TTFT and TPOT were given; what was not is a multiple of the unloaded time.
    """
    alone = (found.unloaded.ttft, found.unloaded.tpot)
    parts = []
    for name, promised, own, told in zip(("TTFT", "TPOT"), (found.slo.first, found.slo.gap), alone, given, strict=True):
        origin = "as given" if told else f"{promised / own:.3g} x unloaded"
        parts.append(f"{name} {promised * 1e3:,.1f} ms ({origin}; unloaded {own * 1e3:,.2f} ms)")
    return "promises: " + ", ".join(parts)


def conclusions(found: Found) -> Iterator[str]:
    """What holds of each target, then what is to be known before it is believed."""
    first = next((c.rate for c in found.capacities.values() if c.rate is not None), None)
    for i, (name, c) in enumerate(found.capacities.items()):
        times = f" ({c.rate / first:.2f} x the first)" if i and first and c.rate is not None else ""
        yield f"{name}: {c.words(found.attainment)}{times}"
    verdicts = [(level, name, v) for level, row in sorted(found.levels.items()) for name, v in row.items()]
    if found.unit == "requests/s":
        least = min((v.requests / level for level, _, v in verdicts), default=0.0)
        if least < STEADY * found.unloaded.whole:
            yield (
                f"note: at the highest rate arrivals lasted {least:.1f} s, less than {STEADY:g} unloaded requests "
                f"({found.unloaded.whole:.1f} s each): a burst more than a steady load; raise --requests"
            )
    for level, name, v in verdicts:
        for why, n in v.failures.items():
            yield f"note: {name} at {level:.3g}: {n} not answered: {why}"
        if v.late:
            yield f"note: {name} at {level:.3g}: the generator sent {v.late} late, by up to {v.most_late * 1e3:,.0f} ms"
        if v.guessed:
            yield f"note: {name} at {level:.3g}: tokens of {v.guessed} answers are counted by pieces, it tells none"


# ---- for programs


def as_json(found: Found) -> dict[str, Any]:
    """Everything that was measured."""
    load, unit = found.load, "clients" if found.unit == "clients" else "rate"
    return {
        "load": {
            "about": load.about,
            "requests": len(load.rows),
            "seed": load.seed,
            "scale": load.scale,
            "clipped": load.clipped,
            "room": load.room,
            "block_tokens": load.block,
            "shared_prompt_share": load.shared,
            "lengths": [[r.prompt, r.output] for r in load.rows],
        },
        "arrivals": found.arrivals,
        "slo_seconds": {"ttft": found.slo.first, "tpot": found.slo.gap},
        "unloaded_seconds": asdict(found.unloaded),
        "wanted_attainment": found.attainment,
        "stall": f"a gap of more than {STALL:g} times the median gap of its run",
        "points": [
            {unit: level, "name": name, **_verdict(v)}
            for level, row in sorted(found.levels.items())
            for name, v in row.items()
        ],
        "capacity": {
            name: {"rate": c.rate, "open": c.open, "words": c.words(found.attainment)}
            for name, c in found.capacities.items()
        },
    }


def _verdict(v: Verdict) -> dict[str, Any]:
    spreads = {"ttft": v.ttft, "tpot": v.tpot, "itl": v.itl, "whole": v.whole}
    named = {n: None if s is None else s._asdict() for n, s in spreads.items()}
    return {**asdict(v), **named, "failures": dict(v.failures)}


def lines(found: Found) -> Iterator[Line]:
    """Attainment and goodput by level, and how many requests had waited how long at the level that matters most."""
    by_name: Mapping[str, list[tuple[float, Verdict]]] = {
        name: [(level, row[name]) for level, row in sorted(found.levels.items())]
        for name in next(iter(found.levels.values()))
    }
    for name, points in by_name.items() if len(found.levels) > 1 else ():
        x = tuple(level for level, _ in points)
        yield Line("in time", x, tuple(100 * v.attainment for _, v in points), name, found.unit, "% of requests")
        yield Line("goodput", x, tuple(v.goodput for _, v in points), name, found.unit, "good requests/s")
    level = max(found.levels) if not found.capacities else _interesting(found)
    for what in ("ttft", "tpot"):
        for name, v in found.levels[level].items():
            times = tuple(1e3 * t for t in getattr(v, f"{what}s"))
            if times:
                share = tuple(100 * (i + 1) / v.requests for i in range(len(times)))
                title = f"{what.upper()} at {level:.3g} {found.unit}"
                yield Line(title, times, share, name, "ms, at most", "% of requests")


def _interesting(found: Found) -> float:
    """The best rate that any target kept, else the lowest."""
    return max((c.rate for c in found.capacities.values() if c.rate is not None), default=min(found.levels))
