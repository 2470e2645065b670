"""The gated feed-forward part of a decoder block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diastole.nn.arena import Arena
from diastole.nn.linear import Linear
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(act(gate(x)) · up(x)); ``gate_up`` gives gate and up side by side."""

    ops: Ops
    gate_up: Linear
    down: Linear
    act: str  # "silu" | "gelu_tanh"

    def __call__(self, x: Array, arena: Arena) -> Array:
        """x (T, d), normalised -> (T, F); the caller applies ``down``."""
        t, f = len(x), self.gate_up.n // 2
        both = self.gate_up(x, arena.get("gate_up", t, 2 * f))
        out = arena.get("act", t, f)
        self.ops.gated(both, self.act, out)
        return out
