"""The recogniser's twin that has learned with whole recordings: found, compared, and heard over a buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from diastole.recipes import cache_aware_conformer as recipe
from diastole.types import Array, UserError
from diastole.weights import open_checkpoint

TWIN = Path(recipe.TWIN)


def alike(path: Path, twin: Path) -> None:
    """Check that a twin had the same training as the model.

    Raises:
        UserError: it is not there, or was trained otherwise.
    """
    if not (twin / "config.json").is_file():
        raise UserError(
            f"there is no model in {twin} that has learned with whole recordings; make it once with: diastole train "
            "cache-aware-conformer --full-context",
            param="model",
        )
    here, there = _training(path), _training(twin)
    other = [f"{name} = {there.get(name)}, not {value}" for name, value in here.items() if there.get(name) != value]
    if other:
        said = f"{twin} was trained otherwise ({', '.join(other)}): remove it and train it again"
        raise UserError(said, param="model")


def _training(path: Path) -> dict[str, Any]:
    """The plan of a checkpoint's training, without what it had to see."""
    plan: dict[str, Any] = json.loads(about(path)["plan"])
    sizes = plan.pop("sizes")
    return {name: value for name, value in (plan | sizes).items() if name != "rights"}


def about(path: Path) -> Mapping[str, str]:
    """What a checkpoint says of its training."""
    with safe_open(path / "model.safetensors", "np") as file:
        found: Mapping[str, str] = file.metadata()
    return found


def in_torch(path: Path) -> recipe.Net:
    """A checkpoint of the recipe."""
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    names = recipe.Sizes.__dataclass_fields__
    own_sizes: dict[str, Any] = {n: tuple(config[n]) if n == "rights" else config[n] for n in names}
    sizes = recipe.Sizes(**own_sizes)
    net = recipe.Net(sizes)
    own = {n: torch.from_numpy(checkpoint.f32(n).reshape(checkpoint.raw(n).shape).copy()) for n in checkpoint.names()}
    net.load_state_dict(own)
    return net.eval()


def seen(net: recipe.Net, mel: Array) -> Array:
    """(T, d) of spectra (1, 8 T, bands), each frame with all of them to see."""
    with torch.no_grad():
        found: Array = net.encode(torch.from_numpy(mel), recipe.FULL)[0].numpy()
    return found


def buffered(net: recipe.Net, mel: Array, left: int, right: int) -> Array:
    """(T, d): of each chunk what comes out of it with so many frames before it, all computed anew."""
    chunk, parts = right + 1, []
    for at in range(0, mel.shape[1] // 8, chunk):
        lo = max(at - left, 0)
        parts.append(seen(net, mel[:, 8 * lo : 8 * (at + chunk)])[at - lo :])
    return np.concatenate(parts)
