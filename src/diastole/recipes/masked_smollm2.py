"""masked-smollm2: SmolLM2 taught to fill masks in both directions: a LoRA over its own weights and tokens.

A causal model's row tells the next token, so the adapted one is read shifted by one place, as Dream reads its rows:
the weights then begin near what they are to do. The causal mask falls away at once. Loss as LLaDA's, but for its
weights: of each answer a share t of the tokens is masked, t drawn evenly; each masked token counts the same, padding
behind the answer's end a tenth.

Data: the model's own answers to made-up requests (``own_text``), and tasks with one right answer (``masked_tasks``),
drawn from the seed. What it writes is much worse than what SmolLM2 itself writes: it has seen less than a million
tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.recipes.keeping import Kept
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.lora import adapt, write_adapter
from diastole.recipes.masked_tasks import IN_WORDS, SHORT
from diastole.recipes.own_text import Texts
from diastole.recipes.stepping import Steps, descend
from diastole.text import Tokenizer
from diastole.types import Array
from diastole.weights import Checkpoint

BASE = "smollm2-135m"
MASK = 16  # <empty_output>, a token of code notebooks that no conversation holds
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCALE = 2.0
BEHIND = 0.1  # what a place behind the answer's end counts
CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome, beside the texts.

    Args:
        tokens: of a step, about.
        own: share of examples that are the model's own text.
        prompt, answer: most tokens of an example's halves.
    """

    steps: int = 500
    tokens: int = 1_280
    rate: float = 1e-3
    rank: int = 16
    own: float = 0.4
    prompt: int = 64
    answer: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float  # nats per masked token of answers and padding
    right: float  # of masked tokens of answers


class Example(NamedTuple):
    prompt: Sequence[int]
    answer: Sequence[int]


def network(checkpoint: Checkpoint) -> Llama:
    """The base in torch, frozen numbers in bfloat16, every row seeing all."""
    c = checkpoint.config
    net = Llama(
        LlamaShape(
            c["vocab_size"],
            c["num_hidden_layers"],
            c["hidden_size"],
            c["intermediate_size"],
            c["num_attention_heads"],
            c["num_key_value_heads"],
            CONTEXT,
            float(c["rope_theta"]),
            float(c["rms_norm_eps"]),
            causal=False,
        )
    )
    net.load_state_dict({name: torch.from_numpy(checkpoint.f32(f"model.{name}")) for name in net.state_dict()})
    return net.to(torch.bfloat16)


class Data:
    """Examples by step, the same for the same seed.

    Args:
        own: the model's own text; its conversations are taken in a drawn order.
    """

    def __init__(self, plan: Plan, tokenizer: Tokenizer, own: Texts) -> None:
        self.plan, self._tokenizer = plan, tokenizer
        self.end = max(tokenizer.eos_ids)
        fits = [(ids, n) for ids, n in own.each() if n <= plan.prompt]
        self._own = [Example(ids[:n].tolist(), ids[n : n + plan.answer].tolist()) for ids, n in fits]

    def task(self, rng: Random) -> Example:
        """A task of one kind or another."""
        item = IN_WORDS[rng.choice(list(IN_WORDS))](rng, SHORT)
        prompt, answer = (self._tokenizer.encode(text, special=False) for text in item)
        return Example(prompt, [*answer, self.end])

    def batch(self, step: int) -> tuple[Array, Array, Array]:
        """ids (B, T), where each answer begins (B,), and where what is behind its end begins (B,)."""
        rng = Random(self.plan.seed * 1_000_003 + step)
        if self._own and rng.random() < self.plan.own:
            length = self.plan.prompt + self.plan.answer
            examples = [rng.choice(self._own) for _ in range(max(1, self.plan.tokens // length))]
            most = self.plan.answer
        else:
            examples, most = [self.task(rng) for _ in range(self.plan.tokens // 40)], 0
        width = max(len(e.prompt) + max(len(e.answer) + 2, most) for e in examples)
        rows = [[*e.prompt, *e.answer, *[self.end] * (width - len(e.prompt) - len(e.answer))] for e in examples]
        begins = np.array([len(e.prompt) for e in examples])
        return np.array(rows, np.int64), begins, begins + [len(e.answer) for e in examples]


def train(
    plan: Plan,
    checkpoint: Checkpoint,
    data: Data,
    out: Path,
    tell: Callable[[Progress], None] = lambda p: None,
    base: str = BASE,
) -> dict[str, Any]:
    """Train, and write the adapter; a training that was begun there goes on. base: what the adapter calls its base.

    Returns:
        figures: parameters, seconds, the loss and the share of right tokens at the end.
    """
    torch.manual_seed(plan.seed)
    net = network(checkpoint)
    changes = adapt(net, MATRICES, plan.rank, SCALE)
    optimizer = torch.optim.AdamW(changes.parameters(), plan.rate, (0.9, 0.98), weight_decay=0.0)
    kept = Kept(out / "training", changes, optimizer, asdict(plan))
    steps = Steps(plan.steps, kept)
    latest: list[tuple[float, float]] = []
    for step in steps:
        latest = [*latest[-49:], _step(net, optimizer, plan, data, step)]
        tell(Progress(step + 1, *(float(v) for v in np.mean(latest, 0))))
    loss, right = np.mean(latest, 0) if latest else (0.0, 0.0)
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in changes.parameters()),
        "seconds": round(steps.seconds),
        "loss": round(float(loss), 4),
        "right": round(float(right), 4),
    }
    about = {"recipe": "masked-smollm2", "plan": json.dumps(asdict(plan)), "base": checkpoint.fingerprint}
    about |= {"data": "made-up tasks; answers of the base itself", **{k: str(v) for k, v in figures.items()}}
    settings = {"model_type": "Dream", "mask_token_id": MASK}
    write_adapter(out, base, changes, plan.rank, SCALE, settings, about)
    kept.place.unlink(missing_ok=True)
    return figures


def masked_loss(net: Llama, ids: Tensor, hidden: Tensor, behind: Tensor) -> tuple[Tensor, float]:
    """Of masked places, foretold by the rows before them.

    Args:
        ids: (B, T).
        hidden: (B, T) bool, which are masked; not the first.
        behind: (B, T) bool, which are behind an answer's end.
    """
    states = net(ids.masked_fill(hidden, MASK))[:, :-1]
    chosen = hidden[:, 1:]
    wanted, far = ids[:, 1:][chosen], behind[:, 1:][chosen]
    logits = net.logits(states[chosen]).float()
    weight = torch.where(far, BEHIND, 1.0)
    loss = (F.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()
    right = (logits.detach().argmax(1) == wanted)[~far]
    return loss, float(right.float().mean()) if len(right) else 1.0


def _step(net: Llama, optimizer: torch.optim.Optimizer, plan: Plan, data: Data, step: int) -> tuple[float, float]:
    ids, begins, ends = data.batch(step)
    rng = np.random.default_rng((plan.seed, step, 1))
    b, length = ids.shape
    share = np.maximum((rng.permutation(b) + rng.random(b)) / b, 0.05)  # evenly, not by chance
    place = np.arange(length)
    hidden = (rng.random((b, length)) < share[:, None]) & (place >= begins[:, None])
    behind = place >= ends[:, None]
    loss, right = masked_loss(net, *(torch.from_numpy(x) for x in (ids, hidden, behind)))
    falls = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    descend(optimizer, loss, plan.rate * min(1.0, (step + 1) / 30) * falls)
    return float(loss.detach()), right
