"""SpecDec++'s acceptance head for longspec's block, trained on the model's own text (the paper, section 3.3).

The block guesses a token at every place of a text that the model itself has said; then it reads the text once more with
most tokens replaced by its guesses (a share of 0.15 stays), and its hidden state at a guess's own place is to tell
whether the guess is what the model said. Texts are greedy in half of their answers and drawn at 0.8 in the others; a
guess is right if it is the very token, which is what the engine's verifier asks. Rejections weigh six times as much as
in the published training; since that bends probabilities, two numbers are fitted afterwards on other texts without
weights (Platt scaling), and folded into the last layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.bench.rig import Rig
from diastole.heads.acceptance import BLOCKS, AcceptanceHead
from diastole.recipes import longspec
from diastole.recipes.own_text import Texts
from diastole.recipes.target import Target
from diastole.types import Array

MIX = 0.15  # share of the text's own tokens
REJECTED = 6.0  # weight
EPOCHS, BATCH, RATE = 3, 512, 2e-3
LAG = 2  # tokens that the target lags behind, on average while a chain grows


@dataclass(frozen=True, slots=True)
class Examples:
    """What the head learns from."""

    hidden: Array  # (n, d) float32
    right: Array  # (n,) bool


class Head(nn.Module):
    """``heads.acceptance.AcceptanceHead`` in torch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.out = nn.Linear(width, width), nn.Linear(width, 2)
        nn.init.zeros_(self.block.weight)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(BLOCKS):
            h = h + F.silu(self.block(h))
        told: Tensor = self.out(h)
        return told

    def tensors(self, scale: float = 1.0, shift: float = 0.0) -> dict[str, Array]:
        """As the served head reads them; scale and shift of the difference of the two numbers."""
        out, bias = (p.detach().numpy() * np.float32(scale) for p in (self.out.weight, self.out.bias))
        bias[1] += np.float32(shift)
        block = self.block
        return {"w": block.weight.detach().numpy(), "b": block.bias.detach().numpy(), "out": out, "out_b": bias}


def block_of(target: Target, tensors: Mapping[str, Array]) -> longspec.Block:
    """A served block in torch."""
    block = longspec.Block(target, len(tensors["gate_up.q"]) // 2)
    with torch.no_grad():
        for name in ("qkv", "o", "cross_q", "cross_o", "gate_up", "down"):
            q, d = tensors[f"{name}.q"], tensors[f"{name}.d"].astype(np.float32)
            w = q.reshape(len(q), -1, 32).astype(np.float32) * d[..., None]
            getattr(block, name).weight.copy_(torch.from_numpy(w.reshape(q.shape)))
        block.qkv.bias.copy_(torch.from_numpy(np.array(tensors["qkv_bias"])))
        for name in ("norm_self", "norm_cross", "norm_mlp", "norm_out"):
            getattr(block, name).weight.copy_(torch.from_numpy(np.array(tensors[name])))
    return block


def collect(
    rig: Rig, texts: Texts, tensors: Mapping[str, Array], positions: int, seed: int, tell: Callable[[int], None]
) -> Examples:
    """At least so many guesses of the block, in stretches of texts at random. tell: hears of each n."""
    rng = np.random.default_rng(seed)
    target = Target(rig, longspec.LENGTH)
    block, vocab = block_of(target, tensors), np.asarray(tensors["vocab"])
    head = torch.from_numpy(target.head(vocab)).bfloat16()
    states: list[Array] = []
    right: list[Array] = []
    done = 0
    for ids, pos in longspec.windows(texts.ids, rig.context, longspec.Plan(anchors=False), rng):
        if done >= positions:
            break
        target.read(ids, pos)
        k, v = (torch.from_numpy(a).bfloat16() for a in target.last_layer(len(ids)))
        at = torch.from_numpy(pos).long()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            said = block(torch.from_numpy(target.embedded(ids)), at, k, v, LAG)
            guesses = vocab[F.linear(said[:-1], head).argmax(-1).numpy()]
            mixed = ids.copy()
            replaced = np.flatnonzero(rng.random(len(guesses)) >= MIX) + 1
            mixed[replaced] = guesses[replaced - 1]
            again = block(torch.from_numpy(target.embedded(mixed)), at, k, v, LAG)
        states.append(again.float().numpy()[replaced])
        right.append(mixed[replaced] == ids[replaced])
        done += len(replaced)
        tell(len(replaced))
    return Examples(np.concatenate(states), np.concatenate(right))


def train(examples: Examples, seed: int = 0, weight: float = REJECTED) -> tuple[dict[str, Array], dict[str, Any]]:
    """The head's tensors, and how good it is on the tenth of the examples that it did not see."""
    torch.manual_seed(seed)
    began = time.monotonic()
    order = np.random.default_rng(seed).permutation(len(examples.right))
    parts = np.split(order, [int(0.8 * len(order)), int(0.9 * len(order))])
    x, y = (torch.from_numpy(a) for a in (examples.hidden, examples.right.astype(np.float32)))
    head = Head(x.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), RATE)
    steps = EPOCHS * max(len(parts[0]) // BATCH, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = np.random.default_rng(seed + 1)
    for _ in range(EPOCHS):
        for some in np.array_split(shuffle.permutation(parts[0]), max(len(parts[0]) // BATCH, 1)):
            at = torch.from_numpy(some)
            told = F.log_softmax(head(x[at]), -1)
            loss = -(y[at] * told[:, 1] + weight * (1 - y[at]) * told[:, 0]).sum()
            loss = loss / (y[at] + weight * (1 - y[at])).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    scale, shift = _platt(head, x[torch.from_numpy(parts[1])], y[torch.from_numpy(parts[1])])
    tensors = head.tensors(scale, shift)
    told_right = AcceptanceHead(tensors)(examples.hidden[parts[2]])
    figures = {
        "examples": len(order),
        "right": round(float(examples.right.mean()), 4),
        "ece": round(calibration_error(told_right, examples.right[parts[2]]), 4),
        "auc": round(area(told_right, examples.right[parts[2]]), 4),
        "seconds": round(time.monotonic() - began, 1),
    }
    return tensors, figures


def _platt(head: Head, x: Tensor, y: Tensor) -> tuple[float, float]:
    """What the difference of the two numbers is to be multiplied with, and what to be added."""
    with torch.no_grad():
        told = head(x)
        z = told[:, 1] - told[:, 0]
    both = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([both], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(both[0] * z + both[1], y)
        value.backward()
        return value

    optimizer.step(loss)
    scale, shift = both.tolist()
    return scale, shift


def calibration_error(told: Array, right: Array, bins: int = 10) -> float:
    """The mean difference of what is told and what is so, over ``bins`` ranges of what is told, by their share."""
    which = np.minimum((told * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        own = which == b
        if own.any():
            error += own.mean() * abs(float(told[own].mean()) - float(right[own].mean()))
    return float(error)


def area(told: Array, right: Array) -> float:
    """The probability that a right guess is told to be likelier than a wrong one."""
    order = np.argsort(told, kind="stable")
    ranks = np.empty(len(told))
    ranks[order] = np.arange(1, len(told) + 1)
    n = int(right.sum())
    if n in {0, len(right)}:
        return 0.5
    return float((ranks[right].sum() - n * (n + 1) / 2) / (n * (len(right) - n)))
