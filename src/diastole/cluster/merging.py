"""Merging what several engines say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diastole.engine.service import COSTS

SUMS = ("counters", "finished", "missed", "gauges")
MEANS = frozenset({"kv_cache_usage_perc", *COSTS})  # gauges that do not add up


def merged(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Meters' snapshots by service, of several engines, as if they were of one: see ``metrics.Meter.snapshot``."""
    services: dict[str, list[Mapping[str, Any]]] = {}
    for snapshot in snapshots:
        for name, of in snapshot.items():
            services.setdefault(name, []).append(of)
    return {name: _meter(parts) for name, parts in services.items()}


def _meter(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {key: _sums([p[key] for p in parts]) for key in SUMS}
    for key in MEANS & whole["gauges"].keys():
        whole["gauges"][key] /= len(parts)
    longest = max((len(p["accepted"]) for p in parts), default=0)
    whole["accepted"] = [sum(p["accepted"][i] for p in parts if i < len(p["accepted"])) for i in range(longest)]
    histograms: dict[str, Any] = {}
    for part in parts:
        for name, h in part["histograms"].items():
            if name not in histograms:
                histograms[name] = {"bounds": h["bounds"], "counts": list(h["counts"]), "sum": h["sum"]}
                continue
            into = histograms[name]
            into["counts"] = [a + b for a, b in zip(into["counts"], h["counts"], strict=True)]
            into["sum"] += h["sum"]
    whole["histograms"] = histograms
    return whole


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total
