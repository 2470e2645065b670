"""phasenet: the picker of P and S waves, trained on simulated events over real noise.

Data: ``quakes``. About 12 minutes on two cores for 5,000 steps of 20 windows, which is what the
checkpoint that comes along had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes import quakes
from diastole.recipes.keeping import Kept
from diastole.recipes.shipping import write_model
from diastole.recipes.stepping import Steps, descend

WIDTH, STRIDE, DEPTH, ROOT = 7, 4, 5, 8


class _Step(nn.Module):
    """A convolution that keeps ceil(length / stride) samples, its norm, and ReLU."""

    def __init__(self, channels: int, n: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, n, WIDTH, stride, bias=bias)
        self.norm = nn.BatchNorm1d(n)

    def forward(self, x: Tensor) -> Tensor:
        stride, length = self.conv.stride[0], x.shape[-1]
        total = max((-(-length // stride) - 1) * stride + WIDTH - length, 0)
        return F.relu(self.norm(self.conv(F.pad(x, (total // 2, total - total // 2)))))


class _Up(nn.Module):
    """A transposed convolution, cut to four times its input."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, n, WIDTH, STRIDE, bias=False)
        self.norm = nn.BatchNorm1d(n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)[..., 1 : 1 + STRIDE * x.shape[-1]]
        return F.relu(self.norm(y))


class Net(nn.Module):
    """PhaseNet, as ``models/phasenet.py`` runs it."""

    def __init__(self) -> None:
        super().__init__()
        wide = [ROOT * 2**d for d in range(DEPTH)]
        self.first = _Step(3, ROOT, bias=True)
        self.down = nn.ModuleList(_Step(wide[max(d - 1, 0)], wide[d]) for d in range(DEPTH))
        self.stride = nn.ModuleList(_Step(wide[d], wide[d], STRIDE) for d in range(DEPTH - 1))
        self.up = nn.ModuleList(_Up(wide[d + 1], wide[d]) for d in range(DEPTH - 1))
        self.join = nn.ModuleList(_Step(2 * wide[d], wide[d]) for d in range(DEPTH - 1))
        self.last = nn.Conv1d(ROOT, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, 3000) normalised -> logits (B, 3, 3000) of noise, P and S."""
        x = self.first(x)
        skips = []
        for d in range(DEPTH):
            x = self.down[d](x)
            if d < DEPTH - 1:
                skips.append(x)
                x = self.stride[d](x)
        for d in reversed(range(DEPTH - 1)):
            x, skip = self.up[d](x), skips[d]
            off = (x.shape[-1] - skip.shape[-1]) // 2
            x = self.join[d](torch.cat([skip, x[..., off : off + skip.shape[-1]]], 1))
        logits: Tensor = self.last(x)
        return logits


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    steps: int = 6_000
    batch: int = 20
    rate: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float


def train(plan: Plan, out: Path, tell: Callable[[Progress], None] = lambda p: None) -> Mapping[str, Any]:
    """Train and write the checkpoint; a training that was begun there goes on.

    Returns:
        figures: parameters, seconds, the loss at the end.

    Raises:
        UserError: there is no data, or what lies there is another training's.
    """
    quiet, _ = quakes.noise()
    torch.manual_seed(plan.seed)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), plan.rate)
    kept = Kept(out / "training", net, optimizer, asdict(plan))
    steps = Steps(plan.steps, kept, 500)
    losses: list[float] = []
    for step in steps:
        rng = np.random.default_rng((plan.seed, step))
        x, y = (torch.from_numpy(a) for a in quakes.batch(rng, quiet, plan.batch))
        loss = -(y * F.log_softmax(net(x), 1)).sum(1).mean()
        pace = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / plan.steps))
        descend(optimizer, loss, plan.rate * pace, longest=None)
        losses = [*losses[-99:], float(loss.detach())]
        tell(Progress(step + 1, float(np.mean(losses))))
    figures = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(steps.seconds),
        "loss": round(float(np.mean(losses)), 5) if losses else None,
    }
    about = {
        "recipe": "phasenet",
        "plan": json.dumps(asdict(plan)),
        **quakes.about(),
        **{k: str(v) for k, v in figures.items()},
    }
    write_model(out, {"model_type": "phasenet"}, net, about)
    kept.place.unlink(missing_ok=True)
    return figures
