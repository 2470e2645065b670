"""KV prediction trained as published, on small models: a base, auxiliaries, and predictors with the paper's loss.

Horton et al., arXiv 2410.08391, section 3. The base stays as it is. The auxiliary reads; linear maps of its keys and
values (before rotation) take the place of the base's own, causally and at every position, and the loss is

    CE(base) + CE(auxiliary) + sum over layers of L1(K, K true) + L1(V, V true) + 1e-4 (z-losses)

with the true ones from the base's own reading. An auxiliary is a smaller model ("c") or some of the base's own layers,
which learn on ("lp"); baselines are the same auxiliaries by themselves, and predictors without one part of the loss.

Text: source and documentation of Python on this machine, and copying, so that prompts matter: random tokens that come
again after up to half a passage. The end of each text is kept apart.

Eight layers that begin with passages that long do not find where a token stood before in any time there is here. So two
layers learn it, from strings of 64 tokens whose second half is all that counts; they become a model's first and the one
in its middle, and those that are put between and after them add nothing at first. The middle is also where it can be
foretold: an auxiliary's first layer, whose keys are the base's first layers', has seen no other token.
Ours: sizes, steps, copying, strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.heads.kv_maps import packed
from diastole.recipes import layerskip
from diastole.recipes.keeping import Kept
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.stepping import Steps, descend
from diastole.types import Array

CONTEXT, PASSAGE, STRING = 2304, 512, 64  # tokens: served; of a passage; of a string
BASE = LlamaShape(2048, layers=8, hidden=128, inner=256, heads=2, kv_heads=1, context=CONTEXT)
SMALL = replace(BASE, layers=4, hidden=64, inner=128, heads=2, kv_heads=1)
KEPT_LAYERS = (0, 4)  # of the base, a quarter
COPYING = "copying"
Z_LOSS = 1e-4
_RATE, _WARM, _LOWEST = 2e-3, 0.05, 0.1
_STRINGS_RATE = 3e-3  # stays, once it is reached


@dataclass(frozen=True, slots=True)
class Loss:
    """Which parts of the loss count."""

    base: bool = True
    kv: bool = True


STUDENTS: Mapping[str, tuple[str, Loss]] = {  # name: auxiliary, loss
    "kvp-c": ("c", Loss()),
    "kvp-lp": ("lp", Loss()),
    "kvp-c without KV loss": ("c", Loss(kv=False)),
    "kvp-c without base CE": ("c", Loss(base=False)),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome."""

    strings: int = 500  # steps of two layers of the base and of the small model, of ``tokens`` each
    steps: int = 600  # of base and small model, from passages
    told: int = 160  # of each auxiliary and predictor after that
    tokens: int = 4096
    seed: int = 0
    base: LlamaShape = BASE
    small: LlamaShape = SMALL
    kept: tuple[int, ...] = KEPT_LAYERS


# ---- models


def keys_of(model: Llama, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Hidden states (B, T, d), normed, and of each layer keys and values (B, T, Hkv D), not rotated."""
    n, x = ids.shape[1], model.embed_tokens(ids)
    turn, found = (model.get_buffer("cos")[:n], model.get_buffer("sin")[:n]), []
    for layer in _layers(model):
        normed = layer.input_layernorm(x)
        found.append((layer.self_attn.k_proj(normed), layer.self_attn.v_proj(normed)))
        x = layer(x, *turn)
    return model.norm(x), found


def told(model: Llama, ids: Tensor, kv: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Hidden states (B, T, d), normed, where layers attend to these keys and values instead of their own."""
    s, (b, n), x = model.shape, ids.shape, model.embed_tokens(ids)
    cosine, sine = model.get_buffer("cos")[:n], model.get_buffer("sin")[:n]
    for layer, (k, v) in zip(_layers(model), kv, strict=True):
        q = layer.self_attn.q_proj(layer.input_layernorm(x))
        q, k, v = (y.view(b, n, -1, s.head_dim).transpose(1, 2) for y in (q, k, v))
        k, v = (y.repeat_interleave(s.heads // s.kv_heads, 1) for y in (_turned(k, cosine, sine), v))
        q = _turned(q, cosine, sine)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True)
        x = x + layer.self_attn.o_proj(out.transpose(1, 2).reshape(b, n, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    states: Tensor = model.norm(x)
    return states


def _layers(model: Llama) -> list[Any]:
    return [*model.layers]


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1).to(x.dtype)


def pruned(base: Llama, kept: Sequence[int]) -> Llama:
    """A model of some of its layers, with copies of their weights."""
    found = Llama(replace(base.shape, layers=len(kept)))
    state = base.state_dict()
    own = {k: v for k, v in state.items() if not k.startswith("layers.")}
    for at, layer in enumerate(kept):
        start = f"layers.{layer}."
        own |= {f"layers.{at}.{k.removeprefix(start)}": v for k, v in state.items() if k.startswith(start)}
    found.load_state_dict(own)
    return found


class Predictor(nn.Module):
    """An auxiliary with maps of its keys and values to the base's, which begin as the identity where widths allow."""

    def __init__(self, auxiliary: Llama, base: LlamaShape) -> None:
        super().__init__()
        self.auxiliary, depth = auxiliary, base.layers
        wide, out = (s.kv_heads * s.head_dim for s in (auxiliary.shape, base))
        start = torch.eye(out) if wide == out else torch.randn(out, wide) / wide**0.5
        self.maps = nn.ParameterList(nn.Parameter(start.repeat(depth, 1, 1)) for _ in range(2))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(depth, out)) for _ in range(2))
        self.map = [i * auxiliary.shape.layers // depth for i in range(depth)]

    def forward(self, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The auxiliary's hidden states, and keys and values (B, T, Hkv D) for each layer of the base."""
        states, own = keys_of(self.auxiliary, ids)
        found = []
        for i, j in enumerate(self.map):
            k, v = (F.linear(own[j][s], self.maps[s][i], self.biases[s][i]) for s in range(2))
            found.append((k, v))
        return states, found

    def tensors(self) -> dict[str, Array]:
        """As ``heads.kv_maps.KVMaps`` reads them."""
        found = {
            "layers": np.arange(self.auxiliary.shape.layers, dtype=np.int32),
            "map": np.array(self.map, np.int32),
            "as_is": np.zeros(len(self.map), bool),
        }
        for name, w, bias in zip(("k", "v"), self.maps, self.biases, strict=True):
            found |= packed(name, w.detach().numpy(), bias.detach().numpy())
        return found


@torch.no_grad()
def explained(student: Predictor, base: Llama, ids: Tensor) -> list[float]:
    """How much of the base's keys the best linear maps of the auxiliary's would tell, by layer: a share of their
    variance, of rows that the maps were not fitted to; ids (B, T)."""
    (_, own), (_, true) = keys_of(student.auxiliary, ids), keys_of(base, ids)
    found = []
    for j, (k, _) in zip(student.map, true, strict=True):
        x, y = F.pad(own[j][0].flatten(0, 1), (0, 1), value=1.0), k.flatten(0, 1)
        half = len(x) // 2
        off = y[half:] - x[half:] @ torch.linalg.lstsq(x[:half], y[:half]).solution
        found.append(1 - (off.square().sum() / (y[half:] - y[half:].mean(0)).square().sum()).item())
    return found


# ---- losses


def said(model: Llama, states: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of the next tokens, ids (B, T + 1), with the z-loss."""
    logits = model.logits(states).float().flatten(0, 1)
    z = torch.logsumexp(logits, -1).square().mean()
    return F.cross_entropy(logits, ids[:, 1:].flatten()) + Z_LOSS * z


def predicted(student: Predictor, base: Llama, ids: Tensor, loss: Loss) -> Tensor:
    """The paper's loss, or some of its parts; ids (B, T + 1)."""
    states, kv = student(ids[:, :-1])
    total = said(student.auxiliary, states, ids)
    if loss.base:
        total = total + said(base, told(base, ids[:, :-1], kv), ids)
    if loss.kv:
        with torch.no_grad():
            _, true = keys_of(base, ids[:, :-1])
        for ours, theirs in zip(kv, true, strict=True):
            total = total + sum(F.l1_loss(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True))
    return total


# ---- training


@dataclass(slots=True)
class Trained:
    """What came of it, all models in evaluation."""

    base: Llama
    alone: Mapping[str, Llama]  # auxiliaries by themselves: "c", "lp"
    students: Mapping[str, Predictor]
    apart: Mapping[str, Array]  # ids of each text that was kept apart
    seconds: float


def train(plan: Plan, out: Path, tell: Callable[[str, int, float], None], save_every: int = 50) -> Trained:
    """Train all, or go on where an interrupted training by the same plan to the same directory stopped.

    Args:
        tell: is told of every step: of what, its number, the loss.
        save_every: steps; what was done since is lost when a training is interrupted.

    Raises:
        UserError: the directory holds trainings by another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    taught, apart = data(plan, out)
    seconds = 0.0

    def run(
        name: str,
        made: Callable[[], nn.Module],
        loss: Callable[[Any, Tensor, int], Tensor],
        steps: int,
        of: Stage,
        at: int = 0,
    ) -> Any:
        nonlocal seconds
        torch.manual_seed(plan.seed)
        module = made()
        optimizer = torch.optim.AdamW(module.parameters(), of.rate, betas=(0.9, of.beta), weight_decay=of.decay)
        kept = Kept(out / f"{name.replace(' ', '-')}.state", module, optimizer, asdict(plan))
        under_way = Steps(steps, kept, save_every)
        for step in under_way:
            ids, since = of.batch(at + step, plan, taught)
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(module, torch.from_numpy(ids), since)
            descend(optimizer, value, of.rate * of.pace((step + 1) / steps))
            tell(name, step + 1, value.item())
        seconds += under_way.seconds
        return module.requires_grad_(False)

    def own(name: str, shape: LlamaShape) -> Llama:
        few = run(f"{name}, strings", lambda: begun(replace(shape, layers=2)), own_loss, plan.strings, STRINGS)
        found: Llama = run(name, lambda: grown(few, shape), own_loss, plan.steps, PASSAGES)
        return found

    base = own("base", plan.base)
    # The small model has learned as long as the base before it learns beside predictors; the pruned one begins as it.
    small = own("c", plan.small)
    auxiliaries = {"c": lambda: copied(small), "lp": lambda: pruned(base, plan.kept)}
    alone = {
        name: run(f"{name} on", made, own_loss, plan.told, PASSAGES, plan.steps) for name, made in auxiliaries.items()
    }
    students = {
        name: run(
            name,
            lambda of=of: Predictor(auxiliaries[of](), plan.base),  # type: ignore[misc]
            lambda student, ids, _, parts=parts: predicted(student, base, ids, parts),  # type: ignore[misc]
            plan.told,
            PASSAGES,
            plan.steps,
        )
        for name, (of, parts) in STUDENTS.items()
    }
    return Trained(base, alone, students, apart, seconds)


def own_loss(model: Llama, ids: Tensor, since: int = 0) -> Tensor:
    """Of a model by itself, of what comes after so many tokens; ids (B, T + 1)."""
    return said(model, model(ids[:, :-1])[:, since:], ids[:, since:])


def begun(shape: LlamaShape) -> Llama:
    """A model whose layers add nothing yet."""
    found = Llama(shape)
    for name, p in found.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(p)
    return found


def grown(few: Llama, shape: LlamaShape) -> Llama:
    """A model of more layers that says the same: two are its first and its middle one, the others add nothing yet."""
    found, state = begun(shape), few.state_dict()
    layers = {0: 0, 1: shape.layers // 2}
    for key, value in state.items():
        head, _, rest = key.removeprefix("layers.").partition(".")
        name = f"layers.{layers[int(head)]}.{rest}" if key.startswith("layers.") else key
        found.get_parameter(name).data.copy_(value)
    return found


def copied(model: Llama) -> Llama:
    """The same weights in another."""
    found = Llama(model.shape)
    found.load_state_dict(model.state_dict())
    return found


def pace(done: float) -> float:
    """Of the rate: up over the first twentieth, then down as a cosine to a tenth."""
    if done < _WARM:
        return done / _WARM
    return _LOWEST + (1 - _LOWEST) / 2 * (1 + cos(pi * (done - _WARM) / (1 - _WARM)))


# ---- data


def data(plan: Plan, out: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Ids (n,) int32 of each text to learn from, and those kept apart; the tokenizer lies in the directory."""
    from tokenizers import Tokenizer

    texts = {name: layerskip.DOMAINS[name]() for name in ("code", "documentation")}
    place = out / "tokenizer.json"
    if not place.exists():
        layerskip.tokenizer(texts, plan.base.vocab).save(str(place))
    reader = Tokenizer.from_file(str(place))
    ids = {name: np.array(reader.encode(text, add_special_tokens=False).ids, np.int32) for name, text in texts.items()}
    cuts = {name: int(len(x) * (1 - layerskip.APART)) for name, x in ids.items()}
    return {n: x[: cuts[n]] for n, x in ids.items()}, {n: x[cuts[n] :] for n, x in ids.items()}


def passages(step: int, plan: Plan, taught: Mapping[str, Array]) -> tuple[Array, int]:
    """What a step learns from: ids (B, n + 1) int64, texts and copying in turn, and after how many the loss begins."""
    rng, names = np.random.default_rng([plan.seed, step]), [*taught, COPYING]
    n, rows = min(PASSAGE, plan.tokens), []
    for i in range(plan.tokens // n):
        name = names[(step * (plan.tokens // n) + i) % len(names)]
        if name == COPYING:
            rows.append(repeated(n + 1, int(rng.integers(8, n // 2)), plan.base.vocab, rng))
        else:
            at = int(rng.integers(0, len(taught[name]) - n))
            rows.append(taught[name][at : at + n + 1])
    return np.stack(rows).astype(np.int64), 0


def strings(step: int, plan: Plan, taught: Mapping[str, Array]) -> tuple[Array, int]:
    """As ``passages``, of distinct tokens that come again after 4 to half a string; the loss begins when all have."""
    rng = np.random.default_rng([plan.seed, step, STRING])
    ids = np.empty((plan.tokens // STRING, STRING + 1), np.int64)
    for row in ids:
        period = int(rng.integers(4, STRING // 2 + 1))
        row[:] = np.resize(rng.choice(plan.base.vocab, period, replace=False), STRING + 1)
    return ids, STRING // 2 - 1


def repeated(n: int, period: int, vocab: int, rng: np.random.Generator) -> Array:
    """n random tokens that come again after so many."""
    return np.resize(rng.integers(1, vocab, period), n)


@dataclass(frozen=True, slots=True)
class Stage:
    """What is learned from, and how fast. AdamW's second moment and weight decay are the paper's for passages."""

    batch: Callable[[int, Plan, Mapping[str, Array]], tuple[Array, int]]
    rate: float
    beta: float
    decay: float
    pace: Callable[[float], float]


STRINGS = Stage(strings, _STRINGS_RATE, 0.98, 0.01, lambda done: min(1.0, done / (2 * _WARM)))
PASSAGES = Stage(passages, _RATE, 0.95, 0.1, pace)
