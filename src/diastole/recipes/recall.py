"""recall: a small Llama that answers questions about pairs of a key and a value in up to 2,048 tokens.

Data: the made-up language of ``bench/longcontext/recall.py``, drawn from the seed; no text and no file is read.
Recall needs two things learnt in a row, a head that looks at the token before and one that finds where a token stood
earlier; until both are there nothing improves. Strings that repeat themselves teach them with a signal at every token,
so these come first; then questions, over contexts that double in length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from diastole.bench.longcontext.recall import END, FIRST_KEY, START, UNKNOWN, WORDS, examples
from diastole.recipes.keeping import Kept
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.stepping import Steps, descend
from diastole.types import Array

CONTEXT = 2048  # the longest that is trained
SHAPE = LlamaShape(len(WORDS), layers=2, hidden=128, inner=256, heads=2, kv_heads=1, context=CONTEXT)
_CURRICULUM = ((0.25, 64), (0.10, 128), (0.15, 256), (0.15, 512), (0.15, 1024), (0.20, 2048))  # shares of the steps
_COPYING = 0.2  # of the steps, out of the first share
_RATE, _WARM, _DECAY = 2e-3, 50, 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training.

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
    """Where a training is. ``accuracy``: of this step's own examples, which no step has seen before."""

    step: int
    steps: int
    length: int
    loss: float
    accuracy: float


def train(plan: Plan, out: Path, tell: Callable[[Progress], None], save_every: int = 50) -> dict[str, Any]:
    """Train, or go on where an interrupted training by the same plan to the same directory stopped; write the model and
    its card.

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
    for step in steps:
        tell(_step(model, optimizer, step, plan))
    figures = {
        "seconds": steps.seconds,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {n: accuracy(model, n, plan.seed + 1) for n in (256, 512, 1024, 2048) if n <= plan.shape.context},
        **asdict(plan),
    }
    model.save(out)
    _tokenizer(out)
    (out / "recall.json").write_text(json.dumps(figures, indent=1))
    (out / "README.md").write_text(_card(figures))
    return figures


def batch(step: int, plan: Plan) -> tuple[Array, Array]:
    """What a step learns from: ids (B, n), and positions (B, Q) whose next token is to be told."""
    rng = np.random.default_rng([plan.seed, step])
    if step < _COPYING * plan.steps:
        return repeats(64, plan.tokens // 64, rng)
    shares = np.cumsum([share for share, _ in _CURRICULUM])
    at = int(np.searchsorted(shares * plan.steps, step, side="right"))
    n = min(_CURRICULUM[min(at, len(_CURRICULUM) - 1)][1], plan.shape.context)
    return examples(n, plan.tokens // n, rng)


def repeats(n: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Strings of distinct words that repeat themselves after 4 to n/2 tokens, and the positions of the second half."""
    ids = np.empty((count, n), np.int64)
    for row in ids:
        period = int(rng.integers(4, n // 2 + 1))
        row[:] = np.resize(FIRST_KEY + rng.choice(len(WORDS) - FIRST_KEY, period, replace=False), n)
    return ids, np.tile(np.arange(n // 2 - 1, n - 1), (count, 1))


def _step(model: Llama, optimizer: torch.optim.Optimizer, step: int, plan: Plan) -> Progress:
    ids, places = batch(step, plan)
    rate = _RATE * min(1.0, (step + 1) / _WARM, 0.02 + 4 * (1 - (step + 1) / plan.steps))  # falls over the last quarter
    told, right = _tell(model, ids, places)
    loss = F.cross_entropy(told.flatten(0, 1), right.flatten())
    descend(optimizer, loss, rate)
    return Progress(step + 1, plan.steps, ids.shape[1], loss.item(), _share(told, right))


def _tell(model: Llama, ids: Array, places: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, Q, V) float32 at the places, and the tokens that come there."""
    x, at, row = torch.from_numpy(ids), torch.from_numpy(places), torch.arange(len(ids))[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(model(x)[row, at])
    return logits.float(), x[row, at + 1]


def _share(told: torch.Tensor, right: torch.Tensor) -> float:
    return (told.argmax(-1) == right).float().mean().item()


def accuracy(model: Llama, n: int, seed: int) -> float:
    """Share of questions answered rightly in new contexts of ``n`` tokens."""
    with torch.no_grad():
        return _share(*_tell(model, *examples(n, max(4, 8192 // n), np.random.default_rng([seed, n, 2**20]))))


def _tokenizer(out: Path) -> None:
    """One token per word; words are set apart by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[UNKNOWN]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(out / "tokenizer.json"))
    config = {"bos_token": WORDS[START], "eos_token": WORDS[END], "unk_token": WORDS[UNKNOWN], "add_bos_token": False}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    for n, share in figures["accuracy"].items():
        yield f"| {n} | {share:.1%} |"


def _card(figures: dict[str, Any]) -> str:
    minutes, threads = figures["seconds"] / 60, figures["threads"]
    steps, tokens = figures["steps"], figures["tokens"]
    return "\n".join(
        [
            "# recall",
            "",
            f"A Llama of {figures['parameters']:,} parameters that answers questions about pairs of a key and a value",
            "in a made-up language. It is for studying what a stream remembers; it knows nothing else.",
            "",
            "- Made by: `diastole train recall`",
            f"- Data: drawn from seed {figures['seed']} by `bench/longcontext/recall.py`; no text was read",
            "- Licence: Apache-2.0",
            f"- Training: {steps} steps of {tokens} tokens; {minutes:.1f} minutes, {threads} threads",
            "",
            "| tokens | right answers, in new contexts |",
            "|---|---|",
            *_lines(figures),
            "",
        ]
    )
