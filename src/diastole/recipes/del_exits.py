"""Exits of a model that was not trained for any: one matrix after each, so that its head can read what is there.

Behind an exit with hidden states x the head sees norm(u + W u), u = x / rms(x), W (d, d); bare exits are W = 0. W
learns the model's own final distribution (Kullback-Leibler, over the most frequent part of the vocabulary) on the
model's own text, with hidden states of the serving kernels. The model stays as it is: adapters only make drafts of
``del`` better (Entezari Zarch et al., "DEL", 2025, arXiv 2504.05598; the adapters are ours).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.bench.rig import Rig
from diastole.heads.glide import quantized
from diastole.recipes.own_text import Texts
from diastole.recipes.stepping import descend
from diastole.recipes.target import Target
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, UserError

VOCAB = 4096
LENGTH = 512  # tokens of one step
DEPTHS = (0.27, 0.4, 0.53, 0.67, 0.8)  # where exits are, as shares of the layers, unless they are named
_WARM = 0.05  # share of the steps


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training. exits: layers; empty: at ``DEPTHS``."""

    steps: int = 600
    rate: float = 1e-3
    seed: int = 0
    exits: tuple[int, ...] = ()
    vocab: int = VOCAB


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. ``loss``: nats per token, over all exits; ``right``: of this step's tokens, the share
    of which each exit's first choice is the model's."""

    step: int
    steps: int
    loss: float
    right: tuple[float, ...]


class Adapters(nn.Module):
    """The matrices, and the norm that they share with the model."""

    def __init__(self, count: int, weight: Array, eps: float) -> None:
        super().__init__()
        width = len(weight)
        self.maps = nn.Parameter(torch.zeros(count, width, width))
        self.eps = eps
        self.register_buffer("weight", torch.from_numpy(weight.copy()), persistent=False)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """By exit, hidden states (T, d) -> what the head reads, (T, d)."""
        units = [F.rms_norm(x, x.shape[-1:], None, self.eps) for x in states]
        weight = self.get_buffer("weight")
        added = [u + F.linear(u, own) for u, own in zip(units, self.maps, strict=True)]
        return [F.rms_norm(x, x.shape[-1:], weight, self.eps) for x in added]

    def tensors(self, exits: Sequence[int], vocab: Array) -> dict[str, Array]:
        """As the technique ``del`` reads them."""
        found: dict[str, Array] = {"vocab": vocab}
        for exit, own in zip(exits, self.maps, strict=True):
            q, d = quantized(own.detach().numpy())
            found |= {f"adapter.{exit}.q": q, f"adapter.{exit}.d": d.astype(np.float16)}
        return found


def train(
    rig: Rig, texts: Texts, plan: Plan, tell: Callable[[Progress], None] = lambda p: None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The adapters' tensors, and figures about the training.

    Raises:
        UserError: an exit is no layer of this model before its last, or there is less text than one step reads.
    """
    torch.manual_seed(plan.seed)
    target = Target(rig, LENGTH)
    norm, layers = target.decoder.norm, len(target.decoder.blocks)
    exits = plan.exits or standard(layers)
    if min(exits) < 1 or max(exits) >= layers or list(exits) != sorted(set(exits)):
        raise UserError(f"exits must be layers between 1 and {layers - 1}, ascending, not {exits}", param="exits")
    vocab = frequent(texts.ids, rig.vocab, plan.vocab)
    head = torch.from_numpy(target.head(vocab)).bfloat16()
    adapters = Adapters(len(exits), norm.weight, norm.eps)
    optimizer = torch.optim.AdamW(adapters.parameters(), plan.rate, (0.9, 0.98), weight_decay=0.0)
    began, shares, losses = time.monotonic(), [], []
    for step, ids in zip(range(plan.steps), windows(texts.ids, plan.seed), strict=False):
        *early, last = [torch.from_numpy(x) for x in states(target, ids, exits)]
        with torch.autocast("cpu", torch.bfloat16):
            told = F.linear(F.rms_norm(last, last.shape[-1:], torch.from_numpy(norm.weight), norm.eps), head)
            said = [F.linear(x, head) for x in adapters(early)]
        truth = told.float().log_softmax(-1)
        loss = torch.stack(
            [F.kl_div(x.float().log_softmax(-1), truth, reduction="batchmean", log_target=True) for x in said]
        ).mean()
        descend(optimizer, loss, plan.rate * _pace(step / plan.steps))
        first = truth.argmax(-1)
        shares.append(tuple((x.argmax(-1) == first).float().mean().item() for x in said))
        losses.append(loss.item())
        tell(Progress(step + 1, plan.steps, losses[-1], shares[-1]))
    right = np.mean(shares[-50:], 0)
    figures = {
        "steps": plan.steps,
        "seconds": round(time.monotonic() - began, 1),
        "loss": round(float(np.mean(losses[-50:])), 4),
        "right": " ".join(f"{exit}:{share:.3f}" for exit, share in zip(exits, right, strict=True)),
        "parameters": sum(p.numel() for p in adapters.parameters()),
    }
    return adapters.tensors(exits, vocab), figures


def states(target: Target, ids: Array, exits: Sequence[int]) -> list[Array]:
    """Hidden states after each of these layers, and after the last, of ids (T,) int32 from position 0 on: (T, d)
    float32 each, by the kernels that serve."""
    n, decoder = len(ids), target.decoder
    pos, lo, ends = np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.array([0, n], np.int32)
    tables = np.arange(target.length // PAGE, dtype=np.int32)[None]
    b = Batch((), (), ids, pos, ends, pos.astype(np.int64), tables, lo, pos + 1, lo[:0])
    x, first, found = target.embedded(ids), 0, []
    for last in (*exits, len(decoder.blocks)):
        decoder.part(b, {"kv": target.store}, x, first, last)
        found.append(x.copy())
        first = last
    return found


def standard(layers: int) -> tuple[int, ...]:
    """The exits of a model of so many layers."""
    return tuple(sorted({min(max(round(layers * share), 1), layers - 1) for share in DEPTHS}))


def frequent(ids: Array, vocab: int, most: int) -> Array:
    """The ids that come most often, those first."""
    counts = np.bincount(ids, minlength=vocab)
    return np.argsort(-counts, kind="stable")[: min(most, vocab)].astype(np.int32)


def windows(ids: Array, seed: int) -> Iterator[Array]:
    """Stretches of text without end: in every round all of it, cut at other places.

    Raises:
        UserError: there is no whole one.
    """
    if len(ids) < 2 * LENGTH:
        raise UserError(f"the text has {len(ids)} tokens: at least {2 * LENGTH} are needed", param="own")
    rng = np.random.default_rng(seed)
    while True:
        starts = np.arange(int(rng.integers(0, LENGTH)), len(ids) - LENGTH + 1, LENGTH)
        for start in rng.permutation(starts):
            yield np.ascontiguousarray(ids[start : start + LENGTH], np.int32)


def _pace(done: float) -> float:
    """Of the rate: up, then down as a cosine."""
    if done < _WARM:
        return done / _WARM + 0.02
    return 0.05 + 0.475 * (1 + float(np.cos(np.pi * (done - _WARM) / (1 - _WARM))))
