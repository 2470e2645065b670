"""cache-aware-conformer: a small streaming recogniser of numbers, letters and commands, several latencies in one.

Data: ``spoken``: real prompts and letters, and voices of free synthesisers, strung together at random with noise. Each
batch is trained with one chunk size, drawn with equal chances; the loss is the transducer's plus 0.3 of CTC's. A first
phase learns which symbol each frame says. The checkpoint that comes along had 5,000 steps: two hours on one core beside
other work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes import spoken
from diastole.recipes.keeping import Kept
from diastole.recipes.shipping import write_model
from diastole.recipes.stepping import Steps, descend
from diastole.recipes.transducer_loss import transducer_loss
from diastole.types import Array

SYMBOLS = spoken.SYMBOLS
FULL = -1  # as a chunk: everything sees everything
SHORT = 1.92  # seconds of the first examples
TWIN = "full-context-twin"  # where the command puts one that sees whole recordings


@dataclass(frozen=True, slots=True)
class Sizes:
    """As a checkpoint's config.json has them."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    inner: int = 256
    kernel: int = 9
    left: int = 24
    rights: tuple[int, ...] = (11, 5, 1, 0)  # chunk sizes less one; FULL alone: no model that streams
    channels: int = 64
    bands: int = 80
    text: int = 128  # of the transducer's predictor
    joint: int = 128


class Layer(nn.Module):
    """One of the encoder, over a whole utterance with a mask."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        d = s.width
        for i in (1, 2):
            self.add_module(f"ff{i}_norm", nn.LayerNorm(d))
            self.add_module(f"ff{i}_up", nn.Linear(d, s.inner))
            self.add_module(f"ff{i}_down", nn.Linear(s.inner, d))
        self.mha_norm, self.conv_norm, self.depth_norm, self.norm = (nn.LayerNorm(d) for _ in range(4))
        self.q, self.kv, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.place = nn.Linear(d, d, bias=False)
        self.u, self.v = (nn.Parameter(torch.zeros(s.heads, d // s.heads)) for _ in range(2))
        self.conv_in, self.conv_out = nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.depth = nn.Conv1d(d, d, s.kernel, groups=d)

    def forward(self, x: Tensor, mask: Tensor, places: Tensor, causal: bool) -> Tensor:
        """x (B, T, d); mask (T, T) of what is seen; places (2 T - 1, d) of distances T - 1 down to 1 - T."""
        x = x + 0.5 * self._half(1, x)
        x = x + self._attend(self.mha_norm(x), mask, places)
        x = x + self._convolve(self.conv_norm(x), causal)
        x = x + 0.5 * self._half(2, x)
        y: Tensor = self.norm(x)
        return y

    def _half(self, i: int, x: Tensor) -> Tensor:
        m = self._modules
        y: Tensor = m[f"ff{i}_down"](F.silu(m[f"ff{i}_up"](m[f"ff{i}_norm"](x))))  # type: ignore[misc]
        return y

    def _attend(self, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        b, t, d = x.shape
        heads = self.s.heads
        q = self.q(x).view(b, t, heads, -1)
        k, v = self.kv(x).view(b, t, 2, heads, -1).permute(2, 0, 3, 1, 4)
        r = self.place(places).view(2 * t - 1, heads, -1).permute(1, 2, 0)
        content = (q + self.u).transpose(1, 2) @ k.transpose(2, 3)
        place = (q + self.v).transpose(1, 2) @ r
        column = (t - 1 - torch.arange(t))[:, None] + torch.arange(t)
        scores = (content + place.gather(3, column.expand(b, heads, t, t))) * (d // heads) ** -0.5
        mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return y

    def _convolve(self, x: Tensor, causal: bool) -> Tensor:
        y = F.glu(self.conv_in(x), -1).transpose(1, 2)
        k = self.s.kernel - 1
        y = self.depth(F.pad(y, (k, 0) if causal else (k // 2, k - k // 2))).transpose(1, 2)
        z: Tensor = self.conv_out(F.silu(self.depth_norm(y)))
        return z


class Net(nn.Module):
    """The recogniser, as ``models/cache_aware_conformer.py`` runs it."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        n, blank = s.channels, len(SYMBOLS)
        self.sub = nn.ModuleDict({"0": nn.Conv2d(1, n, 3, 2)})
        for i in ("1", "2"):
            self.sub[i] = nn.ModuleDict({"depth": nn.Conv2d(n, n, 3, 2, groups=n), "point": nn.Conv2d(n, n, 1)})
        self.sub["out"] = nn.Linear(n * (s.bands >> 3), s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.ctc = nn.Linear(s.width, blank + 1)
        self.embed = nn.Embedding(blank + 1, s.text)
        self.lstm_in, self.lstm_hidden = nn.Linear(s.text, 4 * s.text), nn.Linear(s.text, 4 * s.text, bias=False)
        self.join_frame, self.join_text = nn.Linear(s.width, s.joint), nn.Linear(s.text, s.joint, bias=False)
        self.join_out = nn.Linear(s.joint, blank + 1)
        self.mel_mean, self.mel_scale = (nn.Parameter(x, False) for x in (torch.zeros(s.bands), torch.ones(s.bands)))

    def encode(self, mel: Tensor, right: int) -> Tensor:
        """mel (B, 8 T, bands) -> (B, T, d); ``right``: chunk size less one, or FULL."""
        x = ((mel - self.mel_mean) * self.mel_scale)[:, None]
        x = F.relu(self.sub["0"](self._padded(x)))
        for i in ("1", "2"):
            part = self.sub[i]
            x = F.relu(part["point"](part["depth"](self._padded(x))))  # type: ignore[index]
        x = self.sub["out"](x.transpose(1, 2).flatten(2))
        t = x.shape[1]
        mask = seen(t, right, self.s.left)
        places = table(t, self.s.width)
        for layer in self.layers:
            x = layer(x, mask, places, right != FULL)
        return x

    @staticmethod
    def _padded(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 0))  # bands on both sides, time before alone

    def predict(self, symbols: Tensor) -> Tensor:
        """symbols (B, U) -> (B, U + 1, h): after none of them, one, ..."""
        b = len(symbols)
        h = c = torch.zeros(b, self.s.text)
        inputs = self.lstm_in(self.embed(symbols))
        out = [h]
        for u in range(symbols.shape[1]):
            i, f, g, o = (inputs[:, u] + self.lstm_hidden(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out, 1)

    def join(self, frames: Tensor, told: Tensor) -> Tensor:
        """(B, T, d), (B, U + 1, h) -> log probabilities (B, T, U + 1, V + 1)."""
        both = torch.tanh(self.join_frame(frames)[:, :, None] + self.join_text(told)[:, None])
        return F.log_softmax(self.join_out(both), -1)


def seen(t: int, right: int, left: int) -> Tensor:
    """(T, T): which frames each sees."""
    if right == FULL:
        return torch.ones(t, t, dtype=torch.bool)
    chunk = torch.arange(t) // (right + 1)
    apart = chunk[:, None] - chunk
    return (apart >= 0) & (apart <= left // (right + 1))


def table(t: int, width: int) -> Tensor:
    """(2 T - 1, width): sines and cosines of distances T - 1 down to 1 - T."""
    at = torch.arange(t - 1, -t, -1.0)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * -(math.log(10_000) / width))
    out = torch.empty(2 * t - 1, width)
    out[:, 0::2], out[:, 1::2] = torch.sin(at * rates), torch.cos(at * rates)
    return out


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    steps: int = 5_000
    early: float = 0.6  # of the steps are of three times as many examples of two seconds, frame by frame (see there)
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0
    ctc: float = 0.3  # of the loss; 1: CTC alone
    sizes: Sizes = field(default_factory=Sizes)


def twin(steps: int = Plan().steps, seed: int = 0) -> Plan:
    """The same training with all of each recording to see."""
    return Plan(steps, seed=seed, sizes=Sizes(rights=(FULL,)))


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float
    ctc: float


def train(
    plan: Plan, out: Path | None, corpus: spoken.Corpus, tell: Callable[[Progress], None] = lambda p: None
) -> tuple[Net, Mapping[str, Any]]:
    """Train, and write the checkpoint where there is a place for it; a training that was begun there goes on.

    Returns:
        the net, and figures: parameters, seconds, the losses at the end.
    """
    torch.manual_seed(plan.seed)
    net = Net(plan.sizes)
    mean, scale = corpus.statistics(plan.seed)
    net.mel_mean.copy_(torch.from_numpy(mean))
    net.mel_scale.copy_(torch.from_numpy(scale))
    optimizer = torch.optim.AdamW(net.parameters(), plan.rate, (0.9, 0.98), weight_decay=1e-3)
    kept = None if out is None else Kept(out / "training", net, optimizer, asdict(plan))
    steps = Steps(plan.steps, kept, 100)
    losses: list[tuple[float, float]] = []
    for step in steps:
        rng = np.random.default_rng((plan.seed, step))
        if step < plan.early * plan.steps:
            # Which symbol is said when is known of strung words, about: so the encoder learns to hear before it has to
            # find out by itself where things are.
            batch = corpus.batch(rng, 3 * plan.batch, SHORT)
            heard = net.ctc(net.encode(torch.from_numpy(batch.mel), int(rng.choice(plan.sizes.rights))))
            loss = ctc = F.cross_entropy(heard.flatten(0, 1), torch.from_numpy(batch.aligned).flatten())
        else:
            fresh = step < (plan.early + 0.05) * plan.steps
            right = int(rng.choice(plan.sizes.rights))
            loss, ctc = _loss(net, corpus.batch(rng, plan.batch), right, plan.ctc, rng, fresh)
        warm, falls = min(1.0, (step + 1) / 200), 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        descend(optimizer, loss, plan.rate * warm * falls)
        losses = [*losses[-49:], (float(loss.detach()), float(ctc.detach()))]
        tell(Progress(step + 1, *(float(v) for v in np.mean(losses, 0))))
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(steps.seconds),
        "loss": round(float(np.mean(losses, 0)[0]), 4) if losses else None,
    }
    if out is not None and kept is not None:
        config = {"model_type": "cache_aware_conformer", **asdict(plan.sizes), "symbols": list(SYMBOLS)}
        about = {"recipe": "cache-aware-conformer", "plan": json.dumps(asdict(plan)), "data": corpus.about}
        write_model(out, config, net, {**about, **{k: str(v) for k, v in figures.items()}}, torch.bfloat16)
        kept.place.unlink(missing_ok=True)
    return net.eval(), figures


def _loss(
    net: Net, batch: spoken.Batch, right: int, share: float, rng: np.random.Generator, fresh: bool = False
) -> tuple[Tensor, Tensor]:
    """fresh: the transducer knows nothing yet, and shall not tell the encoder what to hear."""
    mel = torch.from_numpy(masked(batch.mel, rng))
    frames = net.encode(mel, right)
    lengths, sizes = torch.from_numpy(batch.frames), torch.from_numpy(batch.sizes)
    symbols = torch.from_numpy(batch.symbols)
    chances = F.log_softmax(net.ctc(frames), -1).transpose(0, 1)
    ctc = F.ctc_loss(chances, symbols, lengths, sizes, len(SYMBOLS), "none", zero_infinity=True)
    ctc = (ctc / sizes.clamp_min(1)).mean()
    if share == 1.0:
        return ctc, ctc
    heard = frames.detach() if fresh else frames
    found = transducer_loss(net.join(heard, net.predict(symbols)), symbols, lengths, sizes, len(SYMBOLS))
    loss = (found / sizes.clamp_min(1)).mean() + share * ctc
    return loss, ctc


def masked(mel: Array, rng: np.random.Generator) -> Array:
    """SpecAugment: two stripes of bands and some of time are gone from each."""
    mel = mel.copy()
    _, t, bands = mel.shape
    for x in mel:
        fill = x.mean()
        for _ in range(2):
            width = int(rng.integers(bands // 4))
            at = int(rng.integers(bands - width))
            x[:, at : at + width] = fill
        for _ in range(4):
            width = int(rng.integers(1 + t // 30))
            at = int(rng.integers(t - width))
            x[at : at + width] = fill
    return mel
