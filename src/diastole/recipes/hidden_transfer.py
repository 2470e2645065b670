"""Maps of hidden transfer, trained on the model's own text (see ``heads/transfer.py`` and the paper on training).

A step takes one conversation, which the model reads with the kernels and weights that serve. At up to 64 places of the
answer the maps make pseudo rows of the states that it has there; the layers above them, frozen and taken out of the
packed matrices, refine these beside the keys and values that it keeps. What p_n of place i tells is pulled towards what
the model itself tells at place i + n: KL over its 256 likeliest tokens of the most frequent part of the vocabulary.
Maps are learned in units of the channels' own sizes, which differ much, and begin at zero: as the state itself.

Two baselines learn from the same places in the same steps: maps at the last layer, whose rows no layer refines, and
heads as of Medusa-1 (Cai et al., 2024, arXiv 2401.10774): h + SiLU(W h + b) of the normed last state, the head shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.bench.rig import Rig
from diastole.heads.transfer import matrix, part_of_head
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Linear
from diastole.nn.norm import RMSNorm
from diastole.recipes.keeping import Pickled
from diastole.recipes.longspec import VOCAB, frequent
from diastole.recipes.own_text import Texts
from diastole.recipes.stepping import Steps
from diastole.recipes.target import Target
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, UserError

LENGTH = 1024  # tokens of a conversation that are read, at most
SOURCES, TOP = 64, 256  # places of a conversation; the model's likeliest tokens
TRANSFER, LAST, MEDUSA = "transfer", "last", "medusa"
_HELD = 20  # one of so many conversations is kept for measuring, 64 at most
_SCALED = 8  # conversations from which the size of channels is taken
_WARM = 0.05  # share of the steps


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training."""

    layers: tuple[int, ...] = (20, 22, 24)  # (N,), rising: after so many the pseudo rows of each offset begin
    steps: int = 4_000
    rate: float = 2e-3
    seed: int = 0
    baselines: bool = True  # they are trained too


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is."""

    step: int
    steps: int
    loss: Mapping[str, float]  # of each student, in nats
    right: tuple[float, ...]  # by offset, the share of this step's tokens that hidden transfer would have guessed


class Passage(NamedTuple):
    """What a conversation teaches at S places."""

    states: Tensor  # (S, N, d): of the place, after the layers where maps begin
    last: Tensor  # (S, d): after the last layer
    pos: Tensor  # (S,)
    keys: Mapping[int, tuple[Tensor, Tensor]]  # of each upper layer, keys and values (T, Hkv, D)
    top: Tensor  # (S, N, k): likeliest tokens of the model at places i + 1 .. i + N, as numbers within the vocabulary
    odds: Tensor  # (S, N, k): their probabilities, sum 1
    said: Tensor  # (S, N): the tokens that do come there; -1: not in the vocabulary


class Reader(Target):
    """The model over one conversation, with what it has after ``layers``; of ``vocab`` (n,), ids that can be told."""

    def __init__(self, rig: Rig, vocab: Array, layers: Sequence[int]) -> None:
        super().__init__(rig, LENGTH)
        self.vocab, self.layers, self._head = vocab, tuple(layers), part_of_head(self.decoder, vocab)
        self._place = np.full(self.decoder.vocab, -1)
        self._place[vocab] = np.arange(len(vocab))

    def states(self, ids: Array) -> dict[int, Array]:
        """Absorb ids (T,) int32: hidden states (T, d) after so many layers, for all in ``layers`` and the last."""
        t, depth = len(ids), len(self.decoder.blocks)
        at = np.arange(t, dtype=np.int32)
        tables = np.arange(self.length // PAGE, dtype=np.int32)[None]
        starts, none = np.array([0, t], np.int32), np.empty(0, np.int32)
        batch = Batch((), (), ids, at, starts, at.astype(np.int64), tables, np.zeros(t, np.int32), at + 1, none)
        x, done, found = self.embedded(ids), 0, {}
        for layer in sorted({*self.layers, depth}):
            self.decoder.part(batch, {"kv": self.store}, x, done, layer)
            done, found[layer] = layer, x.copy()
        return found

    def told(self, x: Array) -> Array:
        """Last states (R, d), not yet normed -> the model's logits of the vocabulary (R, n)."""
        normed = self.decoder.norm(np.ascontiguousarray(x), np.empty((len(x), self.decoder.width), np.float32))
        return self._head(normed, np.empty((len(x), len(self.vocab)), np.float32))

    def passage(self, ids: Array, places: Array) -> Passage:
        """ids (T,): a conversation; places (S,): of it, with N + 1 tokens behind each."""
        count, depth = len(self.layers), len(self.decoder.blocks)
        found = self.states(ids)
        ahead = places[:, None] + np.arange(1, count + 1)
        told = torch.from_numpy(self.told(found[depth][ahead.reshape(-1)])).view(*ahead.shape, -1)
        best, top = told.topk(min(TOP, len(self.vocab)))
        return Passage(
            torch.from_numpy(np.stack([found[t][places] for t in self.layers], 1)),
            torch.from_numpy(found[depth][places]),
            torch.from_numpy(places),
            {layer: self._keys(layer, len(ids)) for layer in range(self.layers[0], depth)},
            top,
            best.softmax(-1),
            torch.from_numpy(self._place[ids[ahead + 1]]),
        )

    def _keys(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        k, v = self.store.read(layer, np.arange(n, dtype=np.int64))
        return torch.from_numpy(k), torch.from_numpy(v)


class Layers:
    """The layers of a model from ``first`` on, and what comes behind them, frozen; ``dtype``: of their matrices."""

    def __init__(self, decoder: Decoder, first: int, vocab: Array, dtype: torch.dtype = torch.bfloat16) -> None:
        self.decoder, self.dtype, self.depth = decoder, dtype, len(decoder.blocks)
        self._weights: dict[int, Tensor] = {}  # by the Linear that they belong to
        for block in decoder.blocks[first:]:
            for linear in (block.attn.qkv, block.attn.o, block.mlp.gate_up, block.mlp.down):
                self._weights[id(linear)] = torch.from_numpy(matrix(linear)).to(dtype)
        self.head = torch.from_numpy(matrix(decoder.head, vocab)).to(dtype)

    def refine(self, begun: Tensor, layers: Sequence[int], p: Passage) -> Tensor:
        """Pseudo rows (S, N, d), each as its map made it after its layer -> their last states, normed."""
        x = begun[:, :0]
        for layer in range(layers[0], self.depth):
            x = torch.cat([x, begun[:, x.shape[1] : sum(t <= layer for t in layers)]], 1)
            x = self._layer(layer, x, p)
        return _norm(self.decoder.norm, torch.cat([x, begun[:, x.shape[1] :]], 1))

    def logits(self, states: Tensor) -> Tensor:
        """Normed states (.., d) -> (.., n)."""
        return F.linear(states.to(self.dtype).contiguous(), self.head).float()  # as they lie: many times as slow

    def _layer(self, layer: int, x: Tensor, p: Passage) -> Tensor:
        block = self.decoder.blocks[layer]
        attn, mlp, (s, m, _) = block.attn, block.mlp, x.shape
        h, g, d = attn.heads, attn.kv_heads, attn.head_dim
        qkv = self._linear(attn.qkv, _norm(block.attn_norm, x)).view(s, m, h + 2 * g, d)
        q, k, v = qkv.split((h, g, g), 2)
        if attn.q_norm is not None and attn.k_norm is not None:
            q, k = _norm(attn.q_norm, q), _norm(attn.k_norm, k)
        turn = torch.from_numpy(attn.rope)[p.pos[:, None] + torch.arange(1, m + 1)][:, :, None]
        seen = _attend(_turned(q, turn), _turned(k, turn), v, *p.keys[layer], p.pos, attn.scale)
        added = self._linear(attn.o, seen)
        x = x + (added if block.attn_post is None else _norm(block.attn_post, added))
        gate, up = self._linear(mlp.gate_up, _norm(block.mlp_norm, x)).chunk(2, -1)
        act = F.silu(gate) if mlp.act == "silu" else F.gelu(gate, approximate="tanh")
        added = self._linear(mlp.down, act * up)
        return x + (added if block.mlp_post is None else _norm(block.mlp_post, added))

    def _linear(self, linear: Linear, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.dtype), self._weights[id(linear)]).float()
        return y if linear.bias is None else y + torch.from_numpy(linear.bias)


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], torch.from_numpy(norm.weight), norm.eps)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """x (S, m, heads, D) rotated by turn (S, m, 1, R), cosines then sines."""
    cos, sin = turn.chunk(2, -1)
    a, b, rest = x.split((cos.shape[-1], cos.shape[-1], x.shape[-1] - turn.shape[-1]), -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, far_k: Tensor, far_v: Tensor, pos: Tensor, scale: float) -> Tensor:
    """q (S, m, H, D), k, v (S, m, Hkv, D) of pseudo rows; far_k, far_v (T, Hkv, D) of real ones, which stand at their
    positions -> (S, m, H D): over real rows up to ``pos`` (S,) and pseudo rows of the same source up to the own one."""
    s, m, h, d = q.shape
    q = q.view(s, m, k.shape[2], -1, d)
    far = torch.einsum("smghd,tgd->smght", q, far_k)
    later = torch.arange(len(far_k)) > pos[:, None]
    far = far.masked_fill(later[:, None, None, None], -torch.inf)
    near = torch.einsum("smghd,sjgd->smghj", q, k)
    near = near.masked_fill(~torch.ones(m, m, dtype=torch.bool).tril()[:, None, None], -torch.inf)
    share = (torch.cat((far, near), -1) * scale).softmax(-1)
    out = torch.einsum("smght,tgd->smghd", share[..., : len(far_k)], far_v)
    out = out + torch.einsum("smghj,sjgd->smghd", share[..., len(far_k) :], v)
    return out.reshape(s, m, h * d)


class Maps(nn.Module):
    """What one student learns, TRANSFER, LAST or MEDUSA: N maps, those of a baseline all after the last layer."""

    scale: Tensor

    def __init__(self, name: str, layers: Sequence[int], width: int) -> None:
        super().__init__()
        self.name, self.layers = name, tuple(layers)
        self.weight = nn.Parameter(torch.zeros(len(layers), width, width))  # all begin as the state itself
        self.bias = nn.Parameter(torch.zeros(len(layers), width), requires_grad=name == MEDUSA)
        self.register_buffer("scale", torch.ones(len(layers), width))

    def input(self, p: Passage, above: Layers) -> Tensor:
        """What is mapped: (S, N, d)."""
        if self.name == TRANSFER:
            return p.states
        last = _norm(above.decoder.norm, p.last) if self.name == MEDUSA else p.last
        return last[:, None].expand(-1, len(self.layers), -1)

    def forward(self, p: Passage, above: Layers) -> Tensor:
        """Logits (S, N, n) of the tokens at places i + 2 .. i + 1 + N."""
        h = self.input(p, above)
        z = self.scale * (torch.einsum("nij,snj->sni", self.weight, h / self.scale) + self.bias)
        if self.name == MEDUSA:
            return above.logits(h + F.silu(z))
        return above.logits(above.refine(h + z, self.layers, p))

    def tensors(self, vocab: Array) -> dict[str, Array]:
        """As ``heads.transfer.Transfer`` reads them; Medusa's, which it does not read, with their ``bias``."""
        maps = self.weight.detach() * self.scale[:, :, None] / self.scale[:, None]
        found = {"maps": maps.half().numpy(), "layers": np.array(self.layers, np.int32), "vocab": vocab}
        return found | ({"bias": (self.scale * self.bias.detach()).numpy()} if self.name == MEDUSA else {})


def train(
    rig: Rig,
    texts: Texts,
    plan: Plan,
    tell: Callable[[Progress], None] = lambda p: None,
    kept: Path | None = None,
    save_every: int = 100,
) -> tuple[dict[str, dict[str, Array]], dict[str, Any]]:
    """Each student's tensors by its name, and figures about the training.

    Args:
        tell: is told of every step.
        kept: file of a training under way, which goes on from there.
        save_every: steps; what was done since is lost when a training is interrupted.

    Raises:
        UserError: there is too little text, layers are wrong, or the file is of a training by another plan.
    """
    vocab = frequent(texts.ids, rig.decoder.vocab, VOCAB)
    depth, width = len(rig.decoder.blocks), rig.decoder.width
    if not plan.layers or [*plan.layers] != sorted(plan.layers) or not 1 <= plan.layers[0] <= plan.layers[-1] <= depth:
        raise UserError(f"--layers must rise from 1 to {depth} at most, not {plan.layers}", param="layers")
    lessons, held = _lessons(texts, len(plan.layers))
    reader, above = Reader(rig, vocab, plan.layers), Layers(rig.decoder, plan.layers[0], vocab)
    last = (depth,) * len(plan.layers)
    students = [Maps(TRANSFER, plan.layers, width)]
    students += [Maps(name, last, width) for name in (LAST, MEDUSA) if plan.baselines]
    learned = nn.ModuleDict({student.name: student for student in students})
    optimizer = torch.optim.AdamW([p for p in learned.parameters() if p.requires_grad], plan.rate, weight_decay=0.0)
    about = {"plan": asdict(plan), "tokens": len(texts.ids), "of": texts.fingerprint}
    file = None if kept is None else Pickled(kept, learned, optimizer, about)
    steps = Steps(plan.steps, file, save_every)
    if not steps.first:
        _take_scales(students, [reader.passage(*_chosen(lessons, plan.seed, i)) for i in range(_SCALED)], above)
    for step in steps:
        tell(_step(students, optimizer, reader.passage(*_chosen(lessons, plan.seed, step)), above, step, plan))
    exams = [reader.passage(*_chosen([lesson], plan.seed, i)) for i, lesson in enumerate(held)]
    figures = {
        "steps": plan.steps,
        "seconds": round(steps.seconds, 1),
        "parameters": students[0].weight.numel(),
        "right": {student.name: shares(student, exams, above) for student in students},
    }
    return {student.name: student.tensors(vocab) for student in students}, figures


def shares(student: Maps, exams: Sequence[Passage], above: Layers) -> dict[int, list[float]]:
    """The share of tokens that are among the 1 and the 5 that a student holds for likeliest, by offset: of all tokens,
    also those that are not in its vocabulary."""
    found: dict[int, list[float]] = {}
    with torch.no_grad():
        best = [student(p, above).topk(min(5, len(above.head))).indices for p in exams]
    for k in (1, 5):
        hits = [(b[..., :k] == p.said[..., None]).any(-1) for b, p in zip(best, exams, strict=True)]
        found[k] = [round(x, 4) for x in torch.cat(hits).float().mean(0).tolist()]
    return found


def loss(logits: Tensor, p: Passage) -> Tensor:
    """KL of a student's logits (S, N, n) from the model: nats per row."""
    told = logits.log_softmax(-1).gather(-1, p.top)
    return (p.odds * (p.odds.clamp_min(1e-9).log() - told)).sum(-1).mean()


def _step(
    students: Sequence[Maps], optimizer: torch.optim.Optimizer, p: Passage, above: Layers, step: int, plan: Plan
) -> Progress:
    told = [student(p, above) for student in students]
    losses = [loss(logits, p) for logits in told]
    for group in optimizer.param_groups:
        group["lr"] = plan.rate * _pace((step + 1) / plan.steps)
    optimizer.zero_grad()
    sum(losses, torch.zeros(())).backward()  # no student has anything to do with another
    for student in students:
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    right = (told[0].argmax(-1) == p.said).float().mean(0).tolist()
    named = {student.name: x.item() for student, x in zip(students, losses, strict=True)}
    return Progress(step + 1, plan.steps, named, tuple(right))


def _pace(done: float) -> float:
    """Of the rate: up over the first twentieth, then down as a cosine."""
    if done < _WARM:
        return done / _WARM
    return 0.05 + 0.475 * (1 + float(np.cos(np.pi * (done - _WARM) / (1 - _WARM))))


def _take_scales(students: Sequence[Maps], passages: Sequence[Passage], above: Layers) -> None:
    for student in students:
        seen = torch.cat([student.input(p, above) for p in passages])
        student.scale.copy_(seen.square().mean(0).sqrt() + 1e-3 * seen.square().mean((0, 2)).sqrt()[:, None])


# ---- what there is to learn from


class Lesson(NamedTuple):
    """A conversation, and the places of it that can be sources: first .. behind - 1."""

    ids: Array
    first: int
    behind: int


def _lessons(texts: Texts, offsets: int) -> tuple[list[Lesson], list[Lesson]]:
    """Conversations to learn from, and others to measure with.

    Raises:
        UserError: there are too few.
    """
    cut = ((np.ascontiguousarray(ids[:LENGTH], np.int32), prompt) for ids, prompt in texts.each())
    found = [Lesson(ids, prompt - 1, len(ids) - 1 - offsets) for ids, prompt in cut]
    found = [lesson for lesson in found if lesson.behind > lesson.first]
    if len(found) < 2:
        raise UserError("--own holds too few answers of some length: make more text", param="own")
    held = min(max(len(found) // _HELD, 1), 64)
    return found[:-held], found[-held:]


def _chosen(lessons: Sequence[Lesson], seed: int, step: int) -> tuple[Array, Array]:
    """A step's conversation, each once in a round, and its places, ascending: of (seed, step) alone."""
    turn, at = divmod(step, len(lessons))
    lesson = lessons[int(np.random.default_rng([seed, 0, turn]).permutation(len(lessons))[at])]
    places = np.arange(lesson.first, lesson.behind)
    chosen = np.random.default_rng([seed, 1, step]).permutation(places)[:SOURCES]
    return lesson.ids, np.sort(chosen)
