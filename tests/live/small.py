"""Small models of live input with random weights, as checkpoints, and ways to stream through an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diastole import registry
from diastole.bench.streaming import streamed
from diastole.kernels.table import load
from diastole.live import LiveModel, Reading
from diastole.recipes import cache_aware_conformer, dbconformer, phasenet
from diastole.recipes.shipping import write_model
from diastole.types import Array
from diastole.weights import open_checkpoint

SIZES = cache_aware_conformer.Sizes(
    layers=2, width=32, heads=4, inner=64, left=12, rights=(5, 2, 0), channels=8, bands=16
)


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    """With norms that do something, and no parameter at its beginning."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, x in net.state_dict().items():
            if x.dtype.is_floating_point:
                noise = torch.rand(x.shape, generator=g)
                x += noise * 0.5 + 0.1 if "running_var" in name else (noise - 0.5) * 0.2
    return net.eval()


def conformer() -> cache_aware_conformer.Net:
    torch.manual_seed(3)
    net = cache_aware_conformer.Net(SIZES)
    return stirred(net)  # type: ignore[return-value]


def picker() -> phasenet.Net:
    torch.manual_seed(3)
    return stirred(phasenet.Net())  # type: ignore[return-value]


def classifier(branch: dbconformer.Branch = "both", channels: int = 5, window: int = 101) -> dbconformer.Net:
    torch.manual_seed(3)
    return stirred(dbconformer.Net(channels, window, 20, 3, branch))  # type: ignore[return-value]


def written(net: torch.nn.Module, config: Mapping[str, Any], out: Path) -> LiveModel:
    """A net as the engine runs it."""
    write_model(out, config, net, {})
    checkpoint = open_checkpoint(out)
    model: LiveModel = registry.model(checkpoint.config["model_type"]).live(load(1), checkpoint)
    return model


def conformer_config() -> dict[str, Any]:
    from dataclasses import asdict

    return {"model_type": "cache_aware_conformer", **asdict(SIZES), "symbols": list(cache_aware_conformer.SYMBOLS)}


def classifier_config(channels: int = 5, window: int = 101) -> dict[str, Any]:
    names = [f"ch{i}" for i in range(channels)]
    return {
        "model_type": "dbconformer", "rate": 100.0, "channels": names, "labels": ["a", "b", "c"], "window": window,
        "stride": 25, "patch": 20, "unit": "uV",
    }  # fmt: skip


def readings(
    model: LiveModel, x: Array, pieces: Iterable[int], options: Mapping[str, Any] | None = None
) -> list[Reading]:
    """Of a stream."""
    return [told.reading for told in streamed(model, x, pieces, options)]


def plain(readings: Sequence[Reading]) -> list[tuple[Any, ...]]:
    """To compare: without anything that depends on where chunks ended."""
    return [(r.kind, round(r.start, 6), r.data) for r in readings if r.kind != "partial"]


def noise(n: int, channels: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, channels)).astype(np.float32)
