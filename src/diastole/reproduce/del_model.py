"""The small model that can stop after any layer, and the texts that it is asked to go on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from diastole.bench.tiny import TinyLlama
from diastole.recipes import layerskip as recipe
from diastole.reproduce.study import Study
from diastole.types import Array, UserError

LAYERSKIP = Path("layerskip")  # where `diastole train layerskip` puts its model
PROMPT = 160  # tokens
EASY, SMALL = 4, 0.1  # of the made-up model: after which layer the others add only so much


@dataclass(frozen=True, slots=True)
class Small:
    """A model on disk with text of each domain that it was not trained on."""

    path: Path
    apart: Mapping[str, Array]

    def prompts(self, count: int, judged: bool, seed: int) -> dict[str, list[list[int]]]:
        """So many beginnings of each domain; those to be judged by lie in another half than those to choose by."""
        rng, found = np.random.default_rng([seed, judged]), {}
        for name, ids in self.apart.items():
            half = np.array_split(ids, 2)[judged]
            starts = rng.integers(0, len(half) - PROMPT + 1, count).tolist()
            found[name] = [half[at : at + PROMPT].tolist() for at in starts]
        return found


@contextmanager
def small(study: Study) -> Iterator[Small]:
    """The model that the recipe made; for a quick look, where there is none, a made-up one.

    Raises:
        UserError: there is none, and this is no quick look.
    """
    if (LAYERSKIP / "config.json").is_file():
        figures = _figures(LAYERSKIP)
        study.note(_said(figures))
        yield Small(LAYERSKIP, _apart(LAYERSKIP, int(figures.get("seed", 0))))
    elif study.quick:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "made-up"  # whose packed weights are found again by this name
            path.mkdir()
            apart = _apart(path, study.seed)
            made_up(path)
            study.note(
                "the small model is not trained yet (diastole train layerskip): random weights whose deep layers "
                "change little stand in for it, and speeds say nothing about a trained one"
            )
            yield Small(path, apart)
    else:
        raise UserError(
            f"there is no small model in {LAYERSKIP}, whose layers can all be the last; "
            "make it once with: diastole train layerskip",
            param="model",
        )


def made_up(path: Path) -> None:
    """Write a model of the recipe's shape whose first layers know nearly all, into a directory."""
    s = recipe.SHAPE
    made = TinyLlama(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.inner,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=s.context,
    )
    tensors = {}
    for name in made.names():
        deep = name.endswith(("o_proj.weight", "down_proj.weight")) and int(name.split(".")[2]) >= EASY
        tensors[name] = made.f32(name) * np.float32(SMALL if deep else 1)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(made.config))


def _apart(path: Path, seed: int) -> dict[str, Array]:
    return recipe.data(recipe.Plan(seed=seed, shape=recipe.SHAPE), path, fresh=False)[1]


def _figures(path: Path) -> dict[str, Any]:
    """What the recipe noted of its training; empty: nothing."""
    place = path / "layerskip.json"
    found: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    return found


def _said(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "nothing is known about the small model's training"
    losses = ", ".join(f"{name} {of['loss']:.2f}" for name, of in figures["agreement"].items())
    trained = f"{figures['parameters']:,} parameters, {figures['steps']} steps of {figures['tokens']} tokens"
    return f"the small model: {trained}; loss of text kept apart: {losses}"
