"""unet: a small class-conditional UNet that takes noise off pictures of clothes.

Data: ``fashion-mnist`` (MIT), 60,000 pictures made 16 x 16. Loss: squared error of the noise, at times drawn evenly; a
tenth of the labels is left out, for guidance. Weights are written by the names that diffusers' UNet2DModel has. The
checkpoint that comes along took an hour on one busy core.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes import pictures
from diastole.recipes.keeping import Kept
from diastole.recipes.shipping import write_model
from diastole.recipes.stepping import Steps, descend

TIMES = 1000
NOBODY = 0.1  # of the labels are left out


@dataclass(frozen=True, slots=True)
class Sizes:
    """As a checkpoint's config.json has them, by diffusers' names."""

    sample_size: int = pictures.SIDE
    in_channels: int = 1
    block_out_channels: tuple[int, ...] = (32, 56, 80)
    attention: tuple[bool, ...] = (False, False, True)
    layers_per_block: int = 2
    norm_num_groups: int = 8
    attention_head_dim: int = 16
    num_class_embeds: int = len(pictures.LABELS) + 1  # the last: nothing is said


class Resnet(nn.Module):
    """Two convolutions around the time."""

    def __init__(self, a: int, b: int, time_: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, a, 1e-5), nn.GroupNorm(groups, b, 1e-5)
        self.conv1, self.conv2 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_, b)
        self.conv_shortcut = nn.Conv2d(a, b, 1) if a != b else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        out: Tensor = y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Attention(nn.Module):
    """All pixels look at all."""

    def __init__(self, c: int, head: int, groups: int) -> None:
        super().__init__()
        self.heads = c // head
        self.group_norm = nn.GroupNorm(groups, c, 1e-5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(c, c) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (p(y).view(b, h * w, self.heads, -1).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        out: Tensor = x + self.to_out[0](y).transpose(1, 2).reshape(b, c, h, w)
        return out


class Resized(nn.Module):
    """A convolution that makes a picture half or twice as wide."""

    def __init__(self, c: int, up: bool) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(c, c, 3, 1 if up else 2, 1), up

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)
        return out


class Block(nn.Module):
    """Of one width of pictures: resnets, attention after each where there is some, and a change of width."""

    def __init__(self, ins: list[int], out: int, s: Sizes, attention: bool, change: str) -> None:
        super().__init__()
        time_ = 4 * s.block_out_channels[0]
        self.resnets = nn.ModuleList(Resnet(a, out, time_, s.norm_num_groups) for a in ins)
        heads = [Attention(out, s.attention_head_dim, s.norm_num_groups) for _ in ins if attention]
        self.attentions = nn.ModuleList(heads) if attention else None
        if change:
            self.add_module(change, nn.ModuleList([Resized(out, change == "upsamplers")]))
        self.change = change

    def attended(self, i: int, x: Tensor) -> Tensor:
        if self.attentions is None:
            return x
        found: Tensor = self.attentions[i](x)
        return found

    def changed(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self, self.change)[0](x)
        return found


class Net(nn.Module):
    """The network, as ``models/unet.py`` runs it."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        widths, n = s.block_out_channels, s.layers_per_block
        self.conv_in = nn.Conv2d(s.in_channels, widths[0], 3, padding=1)
        time_ = 4 * widths[0]
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], time_), "linear_2": nn.Linear(time_, time_)}
        )
        self.class_embedding = nn.Embedding(s.num_class_embeds, time_)
        self.down_blocks, skips = nn.ModuleList(), [widths[0]]
        at = widths[0]
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            block = Block([at] + [width] * (n - 1), width, s, s.attention[i], "" if last else "downsamplers")
            self.down_blocks.append(block)
            skips += [width] * (n + (not last))
            at = width
        middle = Block([at, at], at, s, True, "")
        assert middle.attentions is not None
        middle.attentions = nn.ModuleList([middle.attentions[0]])  # one, between two resnets
        self.mid_block = middle
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            ins = []
            for _ in range(n + 1):
                ins.append(at + skips.pop())
                at = width
            self.up_blocks.append(Block(ins, width, s, s.attention[i], "upsamplers" if i else ""))
        self.conv_norm_out = nn.GroupNorm(s.norm_num_groups, widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], s.in_channels, 3, padding=1)

    def embedded(self, t: Tensor, labels: Tensor) -> Tensor:
        """t (B,), labels (B,) -> (B, E)."""
        half = self.s.block_out_channels[0] // 2
        angle = t.float()[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / half))
        wave = torch.cat([angle.cos(), angle.sin()], 1)
        e = self.time_embedding
        found: Tensor = e["linear_2"](F.silu(e["linear_1"](wave))) + self.class_embedding(labels)
        return found

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W) -> what the middle gives, and what each layer before it gave."""
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for i, resnet in enumerate(block.resnets):  # type: ignore[arg-type]
                x = block.attended(i, resnet(x, emb))  # type: ignore[operator]
                skips.append(x)
            if block.change:
                x = block.changed(x)  # type: ignore[operator]
                skips.append(x)
        first, second = self.mid_block.resnets
        return second(self.mid_block.attended(0, first(x, emb)), emb), skips

    def decode(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """-> (B, C, H, W): the noise."""
        skips = list(skips)
        for block in self.up_blocks:
            for i, resnet in enumerate(block.resnets):  # type: ignore[arg-type]
                x = block.attended(i, resnet(torch.cat([x, skips.pop()], 1), emb))  # type: ignore[operator]
            if block.change:
                x = block.changed(x)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        emb = self.embedded(t, labels)
        return self.decode(*self.encode(x, emb), emb)


def kept_shares() -> np.ndarray[Any, np.dtype[np.float64]]:
    """(TIMES,) what is left of a picture's variance at each time: the cosine schedule of Nichol and Dhariwal
    (arXiv 2102.09672, equation 17), each step's loss at most 0.999."""

    def whole(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - whole((i + 1) / TIMES) / whole(i / TIMES), 0.999) for i in range(TIMES)]
    return np.cumprod(1 - np.array(betas))


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    steps: int = 4_000
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0
    average: float = 0.998  # of weights, which are what is kept
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float


def train(
    plan: Plan, out: Path | None, tell: Callable[[Progress], None] = lambda p: None
) -> tuple[Net, dict[str, Any]]:
    """Train, and write the checkpoint where there is a place for it; a training that was begun there goes on.

    Returns:
        the net with its averaged weights, and figures: parameters, seconds, the loss at the end.
    """
    torch.manual_seed(plan.seed)
    both = nn.ModuleDict({"net": Net(plan.sizes), "mean": Net(plan.sizes)})
    net, mean = both["net"], both["mean"].requires_grad_(False)
    mean.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=1e-3)
    kept = None if out is None else Kept(out / "training", both, optimizer, asdict(plan))
    steps, data = Steps(plan.steps, kept, 100), pictures.fashion()[0]
    shares = torch.from_numpy(kept_shares()).float()
    losses: list[float] = []
    for step in steps:
        rng = np.random.default_rng((plan.seed, step))
        which = rng.integers(0, len(data.x), plan.batch)
        x = torch.from_numpy(data.x[which])
        labels = np.where(rng.random(plan.batch) < NOBODY, len(pictures.LABELS), data.y[which])
        t = torch.from_numpy((np.arange(plan.batch) + rng.random(plan.batch)) / plan.batch * TIMES).long()
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))[:, None]
        share = shares[t][:, None, None, None]
        found = net(share.sqrt() * x[:, None] + (1 - share).sqrt() * noise, t, torch.from_numpy(labels))
        loss = F.mse_loss(found, noise)
        warm, falls = min(1.0, (step + 1) / 200), 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        descend(optimizer, loss, plan.rate * warm * falls)
        rate = min(plan.average, step / (step + 10))
        with torch.no_grad():
            for a, b in zip(mean.parameters(), net.parameters(), strict=True):
                a.lerp_(b, 1 - rate)
        losses = [*losses[-199:], float(loss.detach())]
        tell(Progress(step + 1, float(np.mean(losses))))
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(steps.seconds),
        "loss": round(float(np.mean(losses)), 4) if losses else None,
    }
    if out is not None and kept is not None:
        write(mean, plan, out, figures)  # type: ignore[arg-type]
        kept.place.unlink(missing_ok=True)
    return mean.eval(), figures  # type: ignore[return-value]


def write(
    net: Net, plan: Plan, out: Path, figures: dict[str, Any], kind: torch.dtype = torch.bfloat16, **more: Any
) -> None:
    """A directory that the engine serves, as diffusers would have it, with the labels and the schedule."""
    s = plan.sizes
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": s.sample_size,
        "in_channels": s.in_channels,
        "out_channels": s.in_channels,
        "block_out_channels": list(s.block_out_channels),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in s.attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(s.attention)],
        "layers_per_block": s.layers_per_block,
        "norm_num_groups": s.norm_num_groups,
        "norm_eps": 1e-5,
        "attention_head_dim": s.attention_head_dim,
        "num_class_embeds": s.num_class_embeds,
        "labels": list(pictures.LABELS[: s.num_class_embeds - 1]),
        "scheduler": {
            "num_train_timesteps": TIMES,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "epsilon",
            "clip_sample": False,  # with guidance, cutting ruins pictures: noise is no longer what was taken off
        },
        **more,
    }
    about = {"recipe": "unet", "plan": json.dumps(asdict(plan)), "data": "Fashion-MNIST (MIT), 16 x 16"}
    write_model(out, config, net, {**about, **{k: str(v) for k, v in figures.items()}}, kind)
