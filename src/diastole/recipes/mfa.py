"""mfa: four small models that keep equally much of each token, to compare the attention they buy with it.

Step-3 (arXiv 2507.19427) and MFA (Hu et al., arXiv 2412.19255) claim that many wide query heads over one key/value
head, made through few numbers, are worth more than what other attentions do with the same cache. Here every kind keeps
256 numbers per token and layer: few heads with keys and values of their own (``mha``), groups (``gqa``), one group of
wider heads (``mqa``), and the same with factored queries (``mfa``). The width of the FFN makes up for the projections,
so that all have as many weights, the others rather a few more than MFA.

Data and tokenizer: the texts of ``layerskip``, in the same order for all kinds; the end of each is judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes.keeping import Kept
from diastole.recipes.layerskip import APART, END, texts, tokenizer
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.stepping import Steps, descend
from diastole.sim.step_costs import AttentionShape, Factored, Grouped
from diastole.types import Array, UserError

VOCAB, CONTEXT, LAYERS, HIDDEN = 4096, 512, 8, 256
INNER = 320  # of mfa; the others' follow from it
STEP = 8  # widths are multiples
# heads, key/value heads, numbers of a head, numbers that queries go through (0: they go through none)
KINDS = {"mha": (2, 2, 64, 0), "gqa": (8, 2, 64, 0), "mqa": (8, 1, 128, 0), "mfa": (8, 1, 128, 128)}
WINDOWS = 64  # of each text, judged at most
_RATE, _DECAY = 2e-3, 0.05
_WARM = 0.1  # share of the steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape(LlamaShape):
    """A Llama whose heads have ``dim`` numbers; ``rank``: numbers that its queries go through, 0 for none."""

    dim: int
    rank: int = 0

    @property
    def head_dim(self) -> int:
        return self.dim

    @property
    def attention(self) -> AttentionShape:
        """What it keeps, reads and computes."""
        if self.rank:
            return Factored(self.heads, self.dim, self.rank)
        return Grouped(self.heads, self.kv_heads, self.dim)


def shape(kind: str, vocab: int = VOCAB, layers: int = LAYERS, hidden: int = HIDDEN, context: int = CONTEXT) -> Shape:
    """Of one of ``KINDS``, with the FFN that gives it as many weights as the others, rounded up.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r:.60}; there are {', '.join(KINDS)}", param="kind")

    def of(kind: str, inner: int) -> Shape:
        heads, kv_heads, dim, rank = KINDS[kind]
        return Shape(vocab, layers, hidden, inner, heads, kv_heads, context, dim=dim, rank=rank)

    model = of("mfa", INNER).attention.weights(hidden) + 3 * hidden * INNER
    left = model - of(kind, INNER).attention.weights(hidden)
    return of(kind, -(-left // (3 * hidden * STEP)) * STEP)


class _Attention(nn.Module):
    """The queries of MFA."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        wide = s.heads * s.dim
        self.q_proj = nn.Linear(s.hidden, s.rank, bias=False)
        self.inter_norm = nn.RMSNorm(s.rank, s.eps)
        self.wq = nn.Linear(s.rank, wide, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(s.hidden, s.dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(wide, s.hidden, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = (
            self.wq(self.inter_norm(self.q_proj(x).float()))
            .view(b, t, self.shape.heads, self.shape.dim)
            .transpose(1, 2)
        )
        k, v = (p(x)[:, None].expand(-1, self.shape.heads, -1, -1) for p in (self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v, is_causal=True)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, t, -1))
        return mixed


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D), the halves of D as pairs."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class MFA(Llama):
    """A Llama with MFA, saved as a directory that ``models/step3.py`` serves."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        for layer in self.layers:
            layer.self_attn = _Attention(shape)

    def save(self, directory: Path) -> None:
        super().save(directory)
        place, s = directory / "config.json", self.shape
        config = json.loads(place.read_text())
        for key in ("max_position_embeddings", "num_key_value_heads"):
            del config[key]
        more = {
            "architectures": ["Step3TextForCausalLM"],
            "model_type": "step3_text",
            "num_attention_groups": 1,
            "share_q_dim": s.rank,  # type: ignore[attr-defined]
            "max_position_embedding": s.context,
            "moe_layers_enum": "",
        }
        place.write_text(json.dumps(config | more, indent=1))


def build(shape: Shape) -> Llama:
    """The model to train."""
    return MFA(shape) if shape.rank else Llama(shape)


# ---- training


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training, beside the machine's texts.

    Args:
        tokens: of one step; 735 steps of 4,096 are 3 million.
        seed: of weights and of the order of the texts.
    """

    kind: str
    shape: Shape
    steps: int = 735
    seed: int = 0
    tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. ``loss``: nats per token, of this step."""

    step: int
    steps: int
    loss: float


def train(plan: Plan, out: Path, tell: Callable[[Progress], None], save_every: int = 50) -> dict[str, Any]:
    """Train one kind, or go on where an interrupted training by the same plan to the same directory stopped; write a
    Hugging Face directory.

    Args:
        tell: is told of every step.
        save_every: steps; what was done since is lost when a training is interrupted.

    Returns:
        the figures that it also writes to mfa.json: "loss" is of text that was kept apart, nats per token, and
        "losses" each domain's; "kept" counts the numbers that a layer keeps of a token.

    Raises:
        UserError: the directory holds a training by another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    model = build(plan.shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=_DECAY)
    steps = Steps(plan.steps, Kept(out / "training.state", model, optimizer, asdict(plan)), save_every)
    taught, apart = data(plan, out, fresh=not steps.first)
    for step in steps:
        tell(_step(model, optimizer, step, plan, taught))
    losses = {name: judged(model, ids) for name, ids in apart.items()}
    figures = {
        "loss": float(np.concatenate(list(losses.values())).mean()),
        "losses": {name: float(of.mean()) for name, of in losses.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "kept": plan.shape.attention.kv_values,
        "seconds": steps.seconds,
        "threads": torch.get_num_threads(),
        **asdict(plan),
    }
    model.save(out)
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "add_bos_token": False}, indent=1))
    (out / "mfa.json").write_text(json.dumps(figures, indent=1))
    return figures


def place(folder: Path, plan: Plan) -> Path:
    """Where a training of these lies among others."""
    return folder / f"{plan.kind}-{plan.seed}"


def expect(plan: Plan, out: Path) -> None:
    """Check that this is what was trained there.

    Raises:
        UserError: nothing was, or something else.
    """
    try:
        figures = json.loads((out / "mfa.json").read_text("utf-8"))
    except (OSError, ValueError):
        said = (
            f"there is no model in {out}; make it once with: diastole train mfa --kinds {plan.kind} --seed {plan.seed}"
        )
        raise UserError(said, param="model") from None
    wanted = json.loads(json.dumps(asdict(plan)))
    other = [f"{k} = {figures.get(k)}, not {v}" for k, v in wanted.items() if figures.get(k) != v]
    if other:
        raise UserError(
            f"{out} was trained otherwise ({'; '.join(other)}): remove it and train it again", param="model"
        )


def data(plan: Plan, out: Path, fresh: bool) -> tuple[dict[str, Array], dict[str, Array]]:
    """Ids (n,) int32 of each domain to train on, and those kept apart; the tokenizer is made if ``fresh``, else it is
    the one in the directory. The texts are the same for all seeds, so that losses can be compared."""
    said, place = texts(0), out / "tokenizer.json"
    if fresh or not place.exists():
        tokenizer(said, plan.shape.vocab).save(str(place))
    reader = Tokenizer.from_file(str(place))
    ids = {name: np.array(reader.encode(text, add_special_tokens=False).ids, np.int32) for name, text in said.items()}
    cuts = {name: int(len(x) * (1 - APART)) for name, x in ids.items()}
    return {n: x[: cuts[n]] for n, x in ids.items()}, {n: x[cuts[n] :] for n, x in ids.items()}


def batch(step: int, plan: Plan, taught: Mapping[str, Array]) -> Array:
    """What a step learns from: ids (B, n + 1), of a domain as often as it is long, whatever the kind."""
    rng, domains = np.random.default_rng([plan.seed, step]), list(taught.values())
    n, sizes = min(plan.shape.context, plan.tokens), np.array([len(ids) for ids in domains])
    rows = []
    for i in rng.choice(len(domains), plan.tokens // n, p=sizes / sizes.sum()):
        at = int(rng.integers(0, sizes[i] - n))
        rows.append(domains[i][at : at + n + 1])
    return np.stack(rows).astype(np.int64)


def _step(
    model: Llama, optimizer: torch.optim.Optimizer, step: int, plan: Plan, taught: Mapping[str, Array]
) -> Progress:
    done = (step + 1) / plan.steps
    rate = _RATE * min(1.0, done / _WARM, 0.02 + 2 * (1 - done))  # falls over the last half
    x = torch.from_numpy(batch(step, plan, taught))
    with torch.autocast("cpu", torch.bfloat16):
        told = model.logits(model(x[:, :-1]))
    loss = F.cross_entropy(told.float().flatten(0, 1), x[:, 1:].flatten())
    descend(optimizer, loss, rate)
    return Progress(step + 1, plan.steps, loss.item())


def judged(model: Llama, ids: Array) -> Array:
    """Nats per token of text kept apart, in float32: of each window of the model's context."""
    n = min(model.shape.context, len(ids) - 1)
    found = []
    with torch.no_grad():
        for i in range(max(min((len(ids) - 1) // n, WINDOWS), 1)):  # one by one: all logits would take much memory
            x = torch.from_numpy(ids[i * n : i * n + n + 1].astype(np.int64))[None]
            found.append(F.cross_entropy(model.logits(model(x[:, :-1]))[0], x[0, 1:]).item())
    return np.array(found)
