"""Mixture of experts: a router sends each row to a few gated MLPs, a shared one sees every row.

Source: Shazeer et al., "Outrageously Large Neural Networks" (arXiv 1701.06538), section 2.1; shared experts from
DeepSeekMoE (arXiv 2401.06066), section 3.2; both as Step-3 has them (arXiv 2507.19427).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.decoder import Block
from diastole.nn.linear import Linear, Loader, pack
from diastole.nn.mlp import GatedMLP
from diastole.types import Array, UserError
from diastole.weights import Raw


@dataclass(frozen=True, slots=True)
class Router:
    """Softmax over all experts, then the ``chosen`` most likely; of equals the first."""

    gate: Linear  # (E, d), in float32: a rounded score would send rows elsewhere
    chosen: int
    renormalise: bool  # weights of the chosen sum to 1

    def __call__(self, x: Array, arena: Arena) -> tuple[Array, Array]:
        """x (T, d) -> experts (T, k) int64, ascending, and their weights (T, k) float32."""
        scores = self.gate(x, arena.get("router", len(x), self.gate.n)).astype(np.float64)
        # Row by row in float64: numpy sums a row the same way whatever stands beside it.
        likely = np.exp(scores - scores.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        picks = np.sort(np.argsort(-likely, axis=1, kind="stable")[:, : self.chosen], axis=1)
        weights = np.take_along_axis(likely, picks, 1)
        if self.renormalise:
            weights /= weights.sum(1, keepdims=True)
        return picks, weights.astype(np.float32)


@dataclass(frozen=True, slots=True)
class MoE:
    """shared(x) + Σ weight · expert(x) over the chosen.

    An expert sees all its rows at once. A row's terms are added in ascending order of experts, so that its result does
    not depend on the rows beside it.
    """

    router: Router
    experts: Sequence[GatedMLP]
    shared: GatedMLP

    def __call__(self, x: Array, arena: Arena) -> Array:
        """x (T, d), normalised -> (T, d), until the next call."""
        t, d = x.shape
        out = self.shared.down(self.shared(x, arena), arena.get("moe", t, d))
        picks, weights = self.router(x, arena)
        for e in np.unique(picks):
            rows, place = np.nonzero(picks == e)
            expert = self.experts[e]
            seen = np.take(x, rows, 0, out=arena.get("expert_in", len(rows), d), mode="clip")
            told = expert.down(expert(seen, arena), arena.get("expert_out", len(rows), d))
            told *= weights[rows, place][:, None]
            out[rows] += told  # a row occurs once per expert
        return out


@dataclass(frozen=True, slots=True)
class ExpertBlock(Block):
    """A layer whose FFN is ``moe``; ``mlp`` is the part of it that every row goes through."""

    moe: MoE | None = None

    def ffn(self, x: Array, arena: Arena) -> None:
        """x (T, d) += moe(norm(x))."""
        assert self.moe is not None
        x += self.moe(self.mlp_norm(x, arena.get("normed", *x.shape)), arena)


def expert_layers(config: Mapping[str, Any]) -> frozenset[int]:
    """Layers with experts: those that "moe_layers_enum" lists (numbers, or a text with commas), else all but the first.

    Raises:
        UserError: it lists what is no layer.
    """
    layers, given = config.get("num_hidden_layers", 0), config.get("moe_layers_enum")
    if given is None:
        return frozenset(range(1, layers))
    try:
        listed = [int(i) for i in given.split(",") if i.strip()] if isinstance(given, str) else [int(i) for i in given]
    except (TypeError, ValueError):
        listed = [-1]
    if not all(0 <= i < layers for i in listed):
        said = f"moe_layers_enum = {given!r:.80} must list numbers of layers from 0 to {layers - 1}"
        raise UserError(said, param="moe_layers_enum")
    return frozenset(listed)


def stacked(load: Loader, *names: str) -> list[Linear]:
    """One Linear per expert from matrices (E, N, K) each (without ".weight"), stacked along N."""
    raws = [load.checkpoint.raw(f"{name}.weight") for name in names]
    found = []
    for e in range(raws[0].shape[0]):
        key = f"{'+'.join(names)}#{e}"
        weight = load.packs.get(key)
        if weight is None:
            weight = pack(load.ops, [_expert(raw, e) for raw in raws], load.fmt)
            load.packs.put(key, weight)
        found.append(Linear(load.ops, weight))
    return found


def _expert(raw: Raw, e: int) -> Raw:
    """One matrix (N, K) of several (E, N, K)."""
    _, n, k = raw.shape
    return Raw(f"{raw.name}#{e}", raw.kind, (n, k), raw.data[e * n : (e + 1) * n])
