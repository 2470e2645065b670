"""LongSpec's draft block, trained on the model's own text (see ``heads/glide.py`` and the paper, sections 3.1 and 3.2).

Windows of up to 1,024 tokens teach positions of the whole context: the first few keep theirs, all others are moved by
one random offset (anchor offset), in the target too. While it drafts, the target has not yet absorbed the last tokens;
so here the attention to the target is shifted by one to four tokens. Embedding, head and target stay as they are.

Ours: the block learns the target's own distribution over its part of the vocabulary at every place (cross entropy with
the target's probabilities), where the paper takes the next token of the text: one text tells more so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from diastole.types import Array

VOCAB = 8192
LENGTH, WINDOW = 1024, 512
_SINKS, _LAG = 4, 4  # most tokens that keep their positions, most that the target lags behind
_WARM = 0.1  # share of the steps


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training."""

    steps: int = 1_200
    rate: float = 1e-3
    seed: int = 0
    anchors: bool = True  # moved positions
    lag: bool = True  # the target's last tokens are missing


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. ``right``: share of this step's places where the block guesses the target's choice."""

    step: int
    steps: int
    loss: float
    right: float


class Block(nn.Module):
    """``heads.glide.Glide`` in torch, over one sequence."""

    def __init__(self, target: Target, inner: int) -> None:
        super().__init__()
        attn, d = target.decoder.blocks[0].attn, target.decoder.width
        self.heads, self.kv_heads, self.dim = attn.heads, attn.kv_heads, attn.head_dim
        side, keys = self.heads * self.dim, self.kv_heads * self.dim
        self.qkv = nn.Linear(d, side + 2 * keys)
        self.o, self.cross_q, self.cross_o = (nn.Linear(a, b, bias=False) for a, b in ((side, d), (d, side), (side, d)))
        self.gate_up, self.down = nn.Linear(d, 2 * inner, bias=False), nn.Linear(inner, d, bias=False)
        eps = target.decoder.norm.eps
        self.norm_self, self.norm_cross, self.norm_mlp, self.norm_out = (nn.RMSNorm(d, eps) for _ in range(4))
        self.norm_out.weight.data.copy_(torch.from_numpy(target.decoder.norm.weight))
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        nn.init.zeros_(self.qkv.bias)
        self.table = torch.from_numpy(attn.rope)
        self.act = target.decoder.blocks[0].mlp.act

    def forward(self, x: Tensor, pos: Tensor, k: Tensor, v: Tensor, shift: int) -> Tensor:
        """x (T, d); pos (T,); k, v (T, Hkv, D) of the target -> (T, d), normed."""
        t, h, g = len(x), self.heads, self.kv_heads
        at = torch.arange(t)
        behind = at[:, None] - at
        qkv = self.qkv(self.norm_self(x)).view(t, h + 2 * g, self.dim)
        turned = self._turn(qkv[:, : h + g], pos)
        x = x + self.o(self._mix(turned[:, :h], turned[:, h:], qkv[:, h + g :], (behind >= 0) & (behind < WINDOW)))
        q = self._turn(self.cross_q(self.norm_cross(x)).view(t, h, self.dim), pos)
        far = self._mix(q, k, v, (behind >= shift) | (at == 0))
        x = x + self.cross_o(torch.where(at[:, None] >= shift, far, 0))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        act = F.silu(gate) if self.act == "silu" else F.gelu(gate, approximate="tanh")
        out: Tensor = self.norm_out(x + self.down(act * up))
        return out

    def _turn(self, x: Tensor, pos: Tensor) -> Tensor:
        cos, sin = self.table[pos].chunk(2, -1)
        turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        a, b = turned.chunk(2, -1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1).to(x.dtype)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        share = self.heads // self.kv_heads
        k, v = (y.repeat_interleave(share, 1).transpose(0, 1).to(q.dtype) for y in (k, v))
        out = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, mask)
        return out.transpose(0, 1).reshape(len(q), -1)

    def tensors(self, vocab: Array) -> dict[str, Array]:
        """As ``heads.glide.Glide`` reads them."""
        found: dict[str, Array] = {"vocab": vocab, "qkv_bias": self.qkv.bias.detach().numpy()}
        for name in ("norm_self", "norm_cross", "norm_mlp", "norm_out"):
            found[name] = getattr(self, name).weight.detach().numpy()
        for name in ("qkv", "o", "cross_q", "cross_o", "gate_up", "down"):
            q, d = quantized(getattr(self, name).weight.detach().numpy())
            found |= {f"{name}.q": q, f"{name}.d": d.astype(np.float16)}
        return found


def train(
    rig: Rig, texts: Texts, plan: Plan, tell: Callable[[Progress], None] = lambda p: None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The block's tensors, and figures about the training."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    target = Target(rig, LENGTH)
    vocab = frequent(texts.ids, rig.vocab)
    head = torch.from_numpy(target.head(vocab)).bfloat16()
    block = Block(target, target.decoder.blocks[0].mlp.gate_up.n // 2)
    optimizer = torch.optim.AdamW(block.parameters(), plan.rate, (0.9, 0.95), weight_decay=0.1)
    began, shares = time.monotonic(), []
    for step, (ids, pos) in enumerate(windows(texts.ids, rig.context, plan, rng)):
        if step == plan.steps:
            break
        own = torch.from_numpy(target.read(ids, pos)).bfloat16()
        k, v = (torch.from_numpy(a).bfloat16() for a in target.last_layer(len(ids)))
        shift = int(rng.integers(1, _LAG + 1)) if plan.lag else 1
        with torch.autocast("cpu", torch.bfloat16):
            hidden = block(torch.from_numpy(target.embedded(ids)), torch.from_numpy(pos).long(), k, v, shift)
            logits = F.linear(hidden, head)
            with torch.no_grad():
                want = F.softmax(F.linear(own, head).float(), -1)
        loss = F.cross_entropy(logits.float(), want)
        descend(optimizer, loss, plan.rate * _pace(step / plan.steps))
        shares.append((logits.argmax(-1) == want.argmax(-1)).float().mean().item())
        tell(Progress(step + 1, plan.steps, loss.item(), shares[-1]))
    figures = {
        "steps": plan.steps,
        "seconds": round(time.monotonic() - began, 1),
        "right": round(float(np.mean(shares[-50:])), 4),
        "parameters": sum(p.numel() for p in block.parameters()),
        "anchors": plan.anchors,
        "lag": plan.lag,
    }
    return block.tensors(vocab), figures


def frequent(ids: Array, vocab: int, most: int = VOCAB) -> Array:
    """The ids that come most often, ascending."""
    counts = np.bincount(ids, minlength=vocab)
    return np.sort(np.argsort(-counts, kind="stable")[: min(most, vocab)]).astype(np.int32)


def windows(ids: Array, context: int, plan: Plan, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Stretches of text with positions, without end: in every round all of the text, cut at other places."""
    while True:
        first = int(rng.integers(0, LENGTH))
        starts = np.arange(first, len(ids) - LENGTH, LENGTH)
        for start in rng.permutation(starts):
            pos = np.arange(LENGTH, dtype=np.int32)
            if plan.anchors:
                pos[int(rng.integers(0, _SINKS + 1)) :] += np.int32(rng.integers(0, max(context - LENGTH, 1)))
            yield np.ascontiguousarray(ids[start : start + LENGTH], np.int32), pos


def _pace(done: float) -> float:
    """Of the rate: up over the first tenth, then down as a cosine."""
    if done < _WARM:
        return done / _WARM + 0.01
    return 0.05 + 0.475 * (1 + float(np.cos(np.pi * (done - _WARM) / (1 - _WARM))))
