"""masked-lm: a small masked diffusion language model of bytes, which counts, sorts, reverses, adds, and knows a text.

Data: tasks with one right answer (``masked_tasks``, made up) and the documentation of Python's library (PSF-2.0). Loss
as LLaDA's, but for its weights: of each answer a share t of the bytes is masked, t drawn evenly, and what is masked is
to be told. Each masked byte counts the same, padding behind an answer's end a tenth. Seed 0; the model that comes along
took an hour of one busy core. Of a hundred answers of each kind in 16 steps it gets right: say 100, reverse 100, sort
71, add 51, count 37.

What went wrong on the way: with weights of 1 / t, which make the loss a bound of the likelihood, with longer tasks and
long examples from the beginning, 4,000 steps learned none of them: the model never learned to look into the prompt.
Short examples, among them some that only say again what was asked, teach that within a thousand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes.keeping import Kept, whole
from diastole.recipes.masked_tasks import SHORT, TASKS, Item
from diastole.recipes.shipping import write_model
from diastole.recipes.stepping import Steps, descend
from diastole.types import Array

MASK, END = "<|mask|>", "<|endoftext|>"
APART = 0.02  # of the text is not trained with
LENGTHS = (48, 96, 320)  # bytes of examples
SHARES = (0.6, 0.1, 0.3)  # of steps, after the first ones, which are of short examples alone
FIRST = 0.5  # of all steps
BEHIND = 0.1  # what a place behind an answer's end counts


@dataclass(frozen=True, slots=True)
class Sizes:
    """As a checkpoint's config.json has them, by LLaDA's names."""

    d_model: int = 160
    n_layers: int = 6
    n_heads: int = 5
    mlp_hidden_size: int = 448
    max_sequence_length: int = 1024
    embedding_size: int = 258  # bytes, the end, the mask
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Layer(nn.Module):
    """One block, without a causal mask."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        d, self.heads = s.d_model, s.n_heads
        self.attn_norm, self.ff_norm = Norm(d, s.rms_norm_eps), Norm(d, s.rms_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.ff_proj, self.up_proj = (nn.Linear(d, s.mlp_hidden_size, bias=False) for _ in range(2))
        self.ff_out = nn.Linear(s.mlp_hidden_size, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, d); cos, sin (T, d / H / 2)."""
        b, t, d = x.shape
        y = self.attn_norm(x)
        q, k, v = (p(y).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        seen = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        x = x + self.attn_out(seen.transpose(1, 2).reshape(b, t, d))
        y = self.ff_norm(x)
        out: Tensor = x + self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))
        return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., T, D), the first half of D with the second."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Net(nn.Module):
    """The model, as ``models/llada.py`` runs it."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        inside = {
            "wte": nn.Embedding(s.embedding_size, s.d_model),
            "blocks": nn.ModuleList(Layer(s) for _ in range(s.n_layers)),
            "ln_f": Norm(s.d_model, s.rms_norm_eps),
            "ff_out": nn.Linear(s.d_model, s.embedding_size, bias=False),
        }
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(inside)})
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0, 0.02)
        for name, p in self.named_parameters():
            if name.endswith(("attn_out.weight", "ff_out.weight")) and "blocks" in name:
                nn.init.normal_(p, 0, 0.02 / math.sqrt(2 * s.n_layers))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        parts: Any = self.model["transformer"]
        d = self.s.d_model // self.s.n_heads
        rate = self.s.rope_theta ** (-torch.arange(0, d, 2) / d)
        angle = torch.arange(ids.shape[1])[:, None] * rate
        x = parts["wte"](ids)
        for layer in parts["blocks"]:
            x = layer(x, angle.cos(), angle.sin())
        logits: Tensor = parts["ff_out"](parts["ln_f"](x))
        return logits


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    steps: int = 4_000
    tokens: int = 4_608  # of a step
    rate: float = 2e-3
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return self.sizes.embedding_size - 2

    @property
    def mask(self) -> int:
        return self.sizes.embedding_size - 1


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float  # nats per masked byte
    right: float  # of masked bytes of answers


def text() -> tuple[bytes, bytes]:
    """To train with, and to judge by."""
    from diastole.bench.longtext import DOMAINS

    found = DOMAINS["documentation"]().encode("ascii", "replace")
    cut = int(len(found) * (1 - APART))
    return found[:cut], found[cut:]


def batch(plan: Plan, step: int, known: bytes) -> tuple[Array, Array, Array]:
    """ids (B, T) of a step, where each answer begins (B,), and where it ends (B,)."""
    rng = Random(plan.seed * 1_000_003 + step)
    length = LENGTHS[0] if step < FIRST * plan.steps else rng.choices(LENGTHS, SHARES)[0]
    rows, begins, ends = [], [], []
    for _ in range(plan.tokens // length):
        if length > LENGTHS[0] and rng.random() < 0.3:
            at, begin, end = rng.randrange(len(known) - length), rng.randint(8, 40), length
            row = list(known[at : at + length])
        else:
            item = _task(rng, length)
            said, begin = (item.prompt + item.answer).encode(), len(item.prompt)
            row, end = list(said[:length]) + [plan.end] * (length - len(said)), len(said) + 1
        rows.append(row)
        begins.append(begin)
        ends.append(end)
    return np.array(rows, np.int64), np.array(begins), np.array(ends)


def _task(rng: Random, length: int) -> Item:
    """One of any kind; of long ones most count on, as no other has so much to say."""
    if length > LENGTHS[0] and rng.random() < 0.7:
        return TASKS["count"](rng, length - 20 - rng.randint(2, length // 2))
    return TASKS[rng.choice(list(TASKS))](rng, SHORT)


def train(
    plan: Plan, out: Path | None, tell: Callable[[Progress], None] = lambda p: None
) -> tuple[Net, dict[str, Any]]:
    """Train, and write the checkpoint where there is a place for it; a training that was begun there goes on.

    Returns:
        the net, and figures: parameters, seconds, the loss and the share of right bytes at the end.
    """
    torch.manual_seed(plan.seed)
    net = Net(plan.sizes)
    optimizer = torch.optim.AdamW(net.parameters(), plan.rate, (0.9, 0.98), weight_decay=0.01)
    kept = None if out is None else Kept(out / "training", net, optimizer, asdict(plan))
    steps, known = Steps(plan.steps, kept, 100), text()[0]
    latest: list[tuple[float, float]] = []
    for step in steps:
        latest = [*latest[-99:], _step(net, optimizer, plan, step, known)]
        tell(Progress(step + 1, *(float(v) for v in np.mean(latest, 0))))
    loss, right = np.mean(latest, 0) if latest else (0.0, 0.0)
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(steps.seconds),
        "loss": round(float(loss), 4),
        "right": round(float(right), 4),
    }
    if out is not None and kept is not None:
        write(net, plan, out, figures)
        kept.place.unlink(missing_ok=True)
    return net.eval(), figures


def _step(net: Net, optimizer: torch.optim.Optimizer, plan: Plan, step: int, known: bytes) -> tuple[float, float]:
    """One step; its loss, and the share of masked bytes of answers that were right."""
    ids_, begins, ends = batch(plan, step, known)
    rng = np.random.default_rng((plan.seed, step, 1))
    b, length = ids_.shape
    share = (rng.permutation(b) + rng.random(b)) / b  # evenly, not by chance
    share, place = np.maximum(share, 0.02), np.arange(length)
    hidden = (rng.random((b, length)) < share[:, None]) & (place >= begins[:, None])
    ids, where = torch.from_numpy(ids_), torch.from_numpy(hidden)
    far = torch.from_numpy(place >= ends[:, None])[where]
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(ids.masked_fill(where, plan.mask))[where]
    weight = torch.where(far, BEHIND, 1.0)
    loss = (F.cross_entropy(logits.float(), ids[where], reduction="none") * weight).sum() / weight.sum()
    warm, falls = min(1.0, (step + 1) / 100), 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    descend(optimizer, loss, plan.rate * warm * falls)
    return float(loss.detach()), float((logits.argmax(1) == ids[where])[~far].float().mean())


def write(net: Net, plan: Plan, out: Path, figures: dict[str, Any], kind: torch.dtype = torch.bfloat16) -> None:
    """A directory that the engine serves: weights, settings, and a tokenizer of bytes."""
    config = {
        "model_type": "llada",
        **asdict(plan.sizes),
        "n_kv_heads": plan.sizes.n_heads,
        "vocab_size": plan.sizes.embedding_size,
        "mask_token_id": plan.mask,
        "eos_token_id": plan.end,
    }
    about = {"recipe": "masked-lm", "plan": json.dumps(asdict(plan)), "data": "made-up tasks; Python documentation"}
    write_model(out, config, net, {**about, **{k: str(v) for k, v in figures.items()}}, kind)
    bytewise(out, plan.end, plan.mask)


def bytewise(out: Path, end: int, mask: int) -> None:
    """A tokenizer whose tokens are bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from diastole.text.bytelevel import byte_alphabet

    made = Tokenizer(models.BPE(byte_alphabet(), []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    for token, id in sorted({END: end, MASK: mask}.items(), key=lambda pair: pair[1]):
        assert made.add_special_tokens([AddedToken(token, special=True)]) == 1
        assert made.token_to_id(token) == id
    whole(out / "tokenizer.json", lambda part: made.save(str(part)))
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    settings = json.dumps({"eos_token": END, "add_bos_token": False, "chat_template": template}, indent=1) + "\n"
    whole(out / "tokenizer_config.json", lambda part: part.write_text(settings, "utf-8"))
