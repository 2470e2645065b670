"""layerskip: a small Llama whose layers can all be the last, to study drafting with a model's own first layers on.

Elhoushi et al.: "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding", ACL 2024, arXiv 2404.16710.
Texts of a batch skip layers by chance, deeper ones more often; beside the last layer every fourth one, in turn, has to
foretell the next token through the same norm and head, and the deeper it is the more that counts.

Data: three domains that a drafter finds differently easy, all on every machine: the source of Python's standard
library, its documentation (``bench/longtext.py``), and sums drawn from the seed. The tokenizer is made from the same
text. Nothing is fetched. The end of each text is kept apart and judged at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from diastole.bench.longtext import DOMAINS
from diastole.recipes.keeping import Kept
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.stepping import Steps, descend
from diastole.types import Array

VOCAB, CONTEXT = 2048, 1024
SHAPE = LlamaShape(VOCAB, layers=12, hidden=256, inner=512, heads=4, kv_heads=2, context=CONTEXT)
END = "</s>"
ARITHMETIC = 1_500_000  # characters of sums
SAMPLE = 250_000  # characters of each domain that the tokenizer is made from
APART = 0.05  # share of each text that is not trained on
DROP, SCALE, TURNS = 0.2, 0.2, 4  # of the last layer's skips; of exits' losses; steps between an exit's two losses
_RATE, _WARM, _DECAY = 2e-3, 100, 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training, beside the machine's texts.

    Args:
        tokens: of one step.
        seed: of data and weights.
    """

    steps: int = 1_500
    seed: int = 0
    tokens: int = 4096
    shape: LlamaShape = SHAPE


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. ``loss``: of the last layer, nats per token; ``early``: of the exits of this step."""

    step: int
    steps: int
    loss: float
    early: float


def train(plan: Plan, out: Path, tell: Callable[[Progress], None], save_every: int = 50) -> dict[str, Any]:
    """Train, or go on where an interrupted training by the same plan to the same directory stopped; write a Hugging
    Face directory with a card.

    Args:
        tell: is told of every step.
        save_every: steps; what was done since is lost when a training is interrupted.

    Returns:
        the card's figures.

    Raises:
        UserError: the directory holds a training by another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    model = Llama(plan.shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=_DECAY)
    steps = Steps(plan.steps, Kept(out / "training.state", model, optimizer, asdict(plan)), save_every)
    taught, apart = data(plan, out, fresh=not steps.first)
    for step in steps:
        tell(_step(model, optimizer, step, plan, taught))
    figures = {
        "seconds": steps.seconds,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "agreement": {name: agreement(model, ids) for name, ids in apart.items()},
        **asdict(plan),
    }
    model.save(out)
    config = {"eos_token": END, "add_bos_token": False}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (out / "layerskip.json").write_text(json.dumps(figures, indent=1))
    (out / "README.md").write_text(_card(figures))
    return figures


# ---- data


def texts(seed: int) -> dict[str, str]:
    """The three domains."""
    return {
        "code": DOMAINS["code"](),
        "documentation": DOMAINS["documentation"](),
        "arithmetic": arithmetic(seed, ARITHMETIC),
    }


def arithmetic(seed: int, length: int) -> str:
    """Sums and chains of them, each with its steps: about so many characters."""
    rng, lines, size = Random(seed), [], 0
    while size < length:
        numbers = [rng.randrange(1, 10 ** rng.randint(1, 3)) for _ in range(rng.randint(2, 5))]
        total, steps = numbers[0], []
        for n in numbers[1:]:
            sign = "-" if n <= total and rng.random() < 0.4 else "+"
            after = total - n if sign == "-" else total + n
            steps.append(f"{total} {sign} {n} = {after}")
            total = after
        lines.append(f"Q: {' then '.join(map(str, numbers))}\n" + "\n".join(steps) + f"\nA: {total}\n")
        size += len(lines[-1])
    return "\n".join(lines)


def data(plan: Plan, out: Path, fresh: bool) -> tuple[dict[str, Array], dict[str, Array]]:
    """Ids (n,) int32 of each domain to train on, and those kept apart; the tokenizer is made if ``fresh``, else it is
    the one in the directory."""
    said, place = texts(plan.seed), out / "tokenizer.json"
    if fresh or not place.exists():
        tokenizer(said, plan.shape.vocab).save(str(place))
    reader = Tokenizer.from_file(str(place))
    ids = {name: np.array(reader.encode(text, add_special_tokens=False).ids, np.int32) for name, text in said.items()}
    cuts = {name: int(len(x) * (1 - APART)) for name, x in ids.items()}
    return {n: x[: cuts[n]] for n, x in ids.items()}, {n: x[cuts[n] :] for n, x in ids.items()}


def tokenizer(said: Mapping[str, str], vocab: int) -> Any:
    """Byte-pair encoding with digits apart, from as much of each text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text[:SAMPLE] for text in said.values()], trainer)
    return made


def batch(step: int, plan: Plan, taught: Mapping[str, Array]) -> Array:
    """What a step learns from: ids (B, n + 1), domain after domain."""
    rng, names = np.random.default_rng([plan.seed, step]), list(taught)
    n = min(plan.shape.context, plan.tokens)
    rows = []
    for i in range(plan.tokens // n):
        ids = taught[names[(step * (plan.tokens // n) + i) % len(names)]]
        at = int(rng.integers(0, len(ids) - n))
        rows.append(ids[at : at + n + 1])
    return np.stack(rows).astype(np.int64)


# ---- training


def skips(layers: int) -> list[float]:
    """How likely each layer is skipped: from 0 at the first, exponentially, to ``DROP`` at the last."""
    return [DROP * (exp(i * log(2) / (layers - 1)) - 1) for i in range(layers)]


def weights(step: int, layers: int) -> dict[int, float]:
    """What the loss after each layer (1 .. layers) counts for in this step; together 1."""
    turn = [layer for layer in range(2, layers) if layer % TURNS == step % TURNS]
    raw = {layer: SCALE * layer * (layer - 1) / 2 for layer in turn}
    raw[layers] = layers - 1 + SCALE * (layers - 2) * (layers - 1) / 2
    total = sum(raw.values())
    return {layer: value / total for layer, value in raw.items()}


def states(model: Llama, ids: Tensor, kept: Array | None = None) -> list[Tensor]:
    """Hidden states (B, T, d) after each layer, before the final norm. kept: (layers, B) bool, who goes through it;
    None: all."""
    x, n = model.embed_tokens(ids), ids.shape[1]
    cos, sin = model.get_buffer("cos")[:n], model.get_buffer("sin")[:n]
    found = []
    for i, layer in enumerate(model.layers):
        if kept is None or kept[i].all():
            x = layer(x, cos, sin)
        elif kept[i].any():
            rows = torch.from_numpy(np.flatnonzero(kept[i]))
            x = x.index_copy(0, rows, layer(x[rows], cos, sin).to(x.dtype))
        found.append(x)
    return found


def losses(model: Llama, step: int, plan: Plan, ids: Array) -> dict[int, Tensor]:
    """Cross entropy after the layers that have a loss in this step."""
    rng, layers = np.random.default_rng([plan.seed, step, 1]), plan.shape.layers
    kept = rng.random((layers, len(ids))) >= np.array(skips(layers))[:, None]
    x = torch.from_numpy(ids)
    with torch.autocast("cpu", torch.bfloat16):
        after = states(model, x[:, :-1], kept)
        told = {layer: model.logits(model.norm(after[layer - 1])) for layer in weights(step, layers)}
    return {layer: F.cross_entropy(t.float().flatten(0, 1), x[:, 1:].flatten()) for layer, t in told.items()}


def _step(
    model: Llama, optimizer: torch.optim.Optimizer, step: int, plan: Plan, taught: Mapping[str, Array]
) -> Progress:
    rate = _RATE * min(1.0, (step + 1) / _WARM, 0.02 + 2 * (1 - (step + 1) / plan.steps))  # falls over the last half
    found, share = losses(model, step, plan, batch(step, plan, taught)), weights(step, plan.shape.layers)
    loss = torch.stack([share[layer] * value for layer, value in found.items()]).sum()
    descend(optimizer, loss, rate)
    early = [value.item() for layer, value in found.items() if layer < plan.shape.layers]
    last = found[plan.shape.layers].item()
    return Progress(step + 1, plan.steps, last, sum(early) / len(early) if early else last)


def agreement(model: Llama, ids: Array) -> dict[str, Any]:
    """Of text kept apart: loss of the last layer, and after each other layer the share of its first choices that are
    the last one's."""
    n = min(model.shape.context, len(ids) - 1)
    count = max(min((len(ids) - 1) // n, 8), 1)
    x = torch.from_numpy(np.stack([ids[i * n : i * n + n + 1] for i in range(count)]).astype(np.int64))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        *early, last = [model.logits(model.norm(h)).float() for h in states(model, x[:, :-1])]
    first = last.argmax(-1)
    loss = F.cross_entropy(last.flatten(0, 1), x[:, 1:].flatten()).item()
    return {"loss": loss, "exits": [(t.argmax(-1) == first).float().mean().item() for t in early]}


def _card(figures: dict[str, Any]) -> str:
    found, steps, tokens = figures["agreement"], figures["steps"], figures["tokens"]
    minutes, threads = figures["seconds"] / 60, figures["threads"]
    exits = range(1, figures["shape"]["layers"])
    return "\n".join(
        [
            "# layerskip",
            "",
            f"A Llama of {figures['parameters']:,} parameters that can stop after any layer, for studying drafts that",
            "a model makes with its own first layers. It writes code, documentation and sums, none of them well.",
            "",
            "- Made by: `diastole train layerskip`",
            "- Data: source and documentation of the machine's own Python (PSF licence);",
            f"  sums drawn from seed {figures['seed']}",
            "- Licence: Apache-2.0",
            f"- Training: {steps} steps of {tokens} tokens; {minutes:.1f} minutes, {threads} threads",
            "",
            "Text kept apart: loss (nats per token), and how often a layer's first choice is the last layer's",
            "",
            f"| domain | loss | {' | '.join(map(str, exits))} |",
            f"|---|---|{'---|' * len(exits)}",
            *[
                f"| {name} | {of['loss']:.3f} | {' | '.join(f'{share:.0%}' for share in of['exits'])} |"
                for name, of in found.items()
            ],
            "",
        ]
    )
