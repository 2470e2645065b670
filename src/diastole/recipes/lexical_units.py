"""lexical-units: a small Llama that reads placeholders, for ``lexical-unit-decoding``, made in three steps.

1. A model is trained on predictable text that is on every machine: source of the standard library, a dictionary made of
   its documentation strings, and arithmetic in fixed phrases, drawn from the seed.
2. Text that it has not seen is read by it, and lexical units are marked: runs of tokens each of which, but the first,
   had a probability of ``alpha`` or more, up to ``max_unit`` tokens.
3. It is tuned on that text with placeholders beside it. Those of a unit that begins at position s stand at s, s + 1, ..
   and are to say the unit's second, third, .. token. They see the text before s and the unit's earlier placeholders;
   the text sees no placeholder. The loss is the mean over all rows, of text and of placeholders.

Sun and others: "Decoding at the Speed of Thought", LREC-COLING 2024, arXiv 2405.15208. Ours: ``beyond`` gives units so
many placeholders more, whose tokens need not be likely; with 0, as in the paper, placeholders learn from sure tokens
only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from diastole.recipes.keeping import Kept, whole
from diastole.recipes.llama import Llama, LlamaShape
from diastole.recipes.stepping import Steps, descend
from diastole.recipes.unit_texts import END, PLACEHOLDER, texts, vocabulary
from diastole.types import Array, UserError

SHAPE = LlamaShape(2048, layers=8, hidden=256, inner=896, heads=4, kv_heads=2, context=512)
_RATES, _WARM, _DECAY = {"untuned": 2e-3, "tuned": 4e-4}, 50, 0.05
_IGNORED = -100  # a row without a token to tell
_CORPUS, _FIGURES = "corpus.state", "lexical-units.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a training.

    Args:
        steps: on text.
        tune_steps: on text with placeholders.
        rows: windows of one step.
        window: tokens of one.
        room: placeholders beside a window.
        alpha: least probability of a unit's followers.
        max_unit: tokens of a unit, at most.
        beyond: placeholders of a unit beyond its end.
        library: characters of the standard library that are read, at most.
        pages: of arithmetic, of ten problems each.
    """

    steps: int = 1_400
    tune_steps: int = 500
    seed: int = 0
    rows: int = 8
    window: int = 512
    room: int = 256
    alpha: float = 0.9
    max_unit: int = 6
    beyond: int = 0
    library: int = 8_000_000
    pages: int = 6_000
    shape: LlamaShape = SHAPE


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. ``stage``: "untuned" or "tuned"."""

    stage: str
    step: int
    steps: int
    loss: float


# ---- text


def _corpus(plan: Plan, out: Path) -> dict[str, Array]:
    """The ids of each fold, (n,) int32; made once, so that an interrupted training goes on with the same text."""
    place, notes = out / _CORPUS, {"plan": json.dumps(asdict(plan), sort_keys=True)}
    if place.exists():
        with safe_open(place, "np") as file:
            if (file.metadata() or {}) != notes:
                raise UserError(f"{out} holds a training by another plan: give another directory", param="out")
        return dict(load_file(place))
    folds = texts(plan.seed, plan.library, plan.pages)
    backend = vocabulary(folds.train, plan.shape.vocab)
    found = {}
    for name, documents in folds._asdict().items():
        ids = [[*e.ids, backend.token_to_id(END)] for e in backend.encode_batch(documents, add_special_tokens=False)]
        found[name] = np.array([i for document in ids for i in document], np.int32)
        if len(found[name]) < 2 * plan.window:
            raise UserError(f"the text to {name} has {len(found[name])} tokens: read more", param="library")
    for stage in _RATES:
        (out / stage).mkdir(parents=True, exist_ok=True)
        backend.save(str(out / stage / "tokenizer.json"))
        config = {"eos_token": END, "add_bos_token": False}
        (out / stage / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    whole(place, lambda part: save_file(found, part, notes))
    return found


# ---- units


def likelihoods(model: Llama, windows: Array, together: int = 16) -> Array:
    """windows (N, n) int32 -> (N, n) float32: how likely each token was, given those before it; of the first, 0."""
    found = np.zeros(windows.shape, np.float32)
    for at in range(0, len(windows), together):
        ids = torch.from_numpy(windows[at : at + together]).long()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(ids[:, :-1]))
        p = logits.float().softmax(-1).gather(-1, ids[:, 1:, None])
        found[at : at + together, 1:] = p[..., 0].numpy()
    return found


def units(likely: Array, alpha: float, most: int) -> list[tuple[int, int]]:
    """Where lexical units start and how long they are: likely (n,); together they are the whole text."""
    found: list[tuple[int, int]] = []
    for i, p in enumerate(likely.tolist()):
        if found and p >= alpha and found[-1][1] < most:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((i, 1))
    return found


class Row(NamedTuple):
    """A window with placeholders behind it: T = n + room rows."""

    ids: Array  # (T,) int64
    pos: Array  # (T,) int64
    labels: Array  # (T,) int64: the token that a row is to tell; -100: none
    mask: Array  # (T, T) bool: what each row sees


def packed(ids: Array, found: Sequence[tuple[int, int]], plan: Plan, rng: np.random.Generator) -> Row:
    """A window (n,) with the placeholders of as many of its units as there is room for, drawn at random."""
    n, total = len(ids), len(ids) + plan.room
    row, pos, labels = np.full(total, plan.shape.vocab - 1), np.zeros(total, np.int64), np.full(total, _IGNORED)
    row[:n], pos[:n], labels[: n - 1] = ids, np.arange(n), ids[1:]
    mask = np.eye(total, dtype=bool)  # a row that sees nothing at all would have no numbers
    mask[:n, :n] = np.tri(n, dtype=bool)
    at = n
    for unit in rng.permutation(len(found)):
        start, length = found[unit]
        count = min(length - 1 + plan.beyond, plan.max_unit - 1, n - 1 - start)
        if start == 0 or count < 1 or at + count > total:
            continue
        own = slice(at, at + count)
        pos[own] = np.arange(start, start + count)
        labels[own] = ids[start + 1 : start + 1 + count]
        mask[own, :start] = True
        mask[own, own] = np.tri(count, dtype=bool)
        at += count
    return Row(row, pos, labels, mask)


def hidden(model: Llama, ids: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
    """``Llama.forward`` for rows that say where they stand, pos (B, T), and what they see, mask (B, T, T)."""
    cos, sin = (model.get_buffer(name)[pos][:, None] for name in ("cos", "sin"))
    x: Tensor = model.embed_tokens(ids)
    layers: Any = model.layers
    for layer in layers:
        x = x + _attend(layer.self_attn, layer.input_layernorm(x), cos, sin, mask[:, None])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    out: Tensor = model.norm(x)
    return out


def _attend(attn: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    b, t, _ = x.shape
    s: LlamaShape = attn.shape

    def heads(projected: Tensor, turn: bool) -> Tensor:
        y = projected.view(b, t, -1, s.head_dim).transpose(1, 2)
        first, second = y.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(y.dtype) if turn else y

    share = s.heads // s.kv_heads
    q, k, v = heads(attn.q_proj(x), True), heads(attn.k_proj(x), True), heads(attn.v_proj(x), False)
    out = F.scaled_dot_product_attention(q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), mask)
    mixed: Tensor = attn.o_proj(out.transpose(1, 2).reshape(b, t, -1))
    return mixed


# ---- training


def train(plan: Plan, out: Path, tell: Callable[[Progress], None], save_every: int = 50) -> dict[str, Any]:
    """Train, or go on where an interrupted training by the same plan to the same directory stopped; write the models
    ``untuned`` and ``tuned``, each a directory, and their cards.

    Args:
        tell: is told of every step.
        save_every: steps; what was done since is lost when a training is interrupted.

    Returns:
        the cards' figures.

    Raises:
        UserError: the directory holds a training by another plan, or there is too little text.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus = _corpus(plan, out)
    torch.manual_seed(plan.seed)
    model = Llama(plan.shape)
    test = _windows(corpus["test"], plan.window)[:64]

    def on_text(step: int) -> Tensor:
        rng = np.random.default_rng([plan.seed, 0, step])
        starts = rng.integers(0, len(corpus["train"]) - plan.window, plan.rows)
        ids = torch.from_numpy(np.stack([corpus["train"][s : s + plan.window] for s in starts])).long()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(ids[:, :-1]))
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    def tell_of(stage: str, steps: int) -> Callable[[int, float], None]:
        return lambda step, loss: tell(Progress(stage, step, steps, loss))

    figures: dict[str, Any] = {"threads": torch.get_num_threads(), **asdict(plan)}
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    figures["seconds"] = _fit(model, "untuned", plan.steps, out, on_text, tell_of("untuned", plan.steps), save_every)
    figures["untuned"] = _judged(model, test)
    held = _windows(corpus["held"], plan.window)
    marks = [units(p, plan.alpha, plan.max_unit) for p in _marks(model, held, out)]
    figures["mean_unit"] = float(np.mean([length for found in marks for _, length in found]))
    wanted = [units(p, plan.alpha, plan.max_unit) for p in likelihoods(model, test)]
    _save(model, "untuned", out, figures)

    def on_units(step: int) -> Tensor:
        rows = [
            packed(held[i], marks[i], plan, np.random.default_rng([plan.seed, 2, step, i]))
            for i in _turn(step, len(held), plan)
        ]
        told, labels = _told(model, rows)
        return F.cross_entropy(told, labels)

    seconds = _fit(model, "tuned", plan.tune_steps, out, on_units, tell_of("tuned", plan.tune_steps), save_every)
    figures["seconds"] += seconds
    figures["tuned"] = _judged(model, test)
    figures["right"] = foreseen(model, test, wanted, plan)
    _save(model, "tuned", out, figures)
    return figures


def _windows(ids: Array, n: int) -> Array:
    return ids[: len(ids) // n * n].reshape(-1, n)


def _turn(step: int, count: int, plan: Plan) -> list[int]:
    """The windows of a step: all come once before any comes again."""
    first = step * plan.rows
    orders: dict[int, Array] = {}
    for at in range(first, first + plan.rows):
        if at // count not in orders:
            orders[at // count] = np.random.default_rng([plan.seed, 1, at // count]).permutation(count)
    return [int(orders[at // count][at % count]) for at in range(first, first + plan.rows)]


def _told(model: Llama, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (R, V) float32 of all rows that are to tell a token, and these tokens (R,)."""
    ids, pos, labels, mask = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(hidden(model, ids, pos, mask)[labels != _IGNORED])
    return logits.float(), labels[labels != _IGNORED]


def _judged(model: Llama, windows: Array) -> float:
    """Mean loss over tokens of new text, in nats."""
    return float(-np.log(np.maximum(likelihoods(model, windows)[:, 1:], 1e-9)).mean())


def foreseen(model: Llama, windows: Array, marks: Sequence[Sequence[tuple[int, int]]], plan: Plan) -> float:
    """Share of placeholders beside these windows that tell the right token first."""
    right = []
    for i, (ids, found) in enumerate(zip(windows, marks, strict=True)):
        row = packed(ids, found, plan, np.random.default_rng([plan.seed, 3, i]))
        at = np.arange(len(row.ids)) >= len(ids)
        with torch.no_grad():
            told, labels = _told(model, [row._replace(labels=np.where(at, row.labels, _IGNORED))])
        right += (told.argmax(-1) == labels).tolist()
    return float(np.mean(right)) if right else 0.0


def _fit(
    model: Llama,
    stage: str,
    steps: int,
    out: Path,
    loss_of: Callable[[int], Tensor],
    tell: Callable[[int, float], None],
    save_every: int,
) -> float:
    """Train the model in place from the step where its stage stands: seconds, over all of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATES[stage], betas=(0.9, 0.98), weight_decay=_DECAY)
    kept = Kept(out / stage / "training.state", model, optimizer)  # the plan is the corpus's
    under_way = Steps(steps, kept, save_every)
    for step in under_way:
        loss, pace = loss_of(step), min(1.0, (step + 1) / _WARM, 0.02 + 2 * (1 - (step + 1) / steps))
        descend(optimizer, loss, _RATES[stage] * pace)  # up over the first steps, down over the last half
        tell(step + 1, loss.item())
    return under_way.seconds


def _marks(model: Llama, held: Array, out: Path) -> Array:
    """``likelihoods`` of the text to tune on, computed once."""
    place = out / "marks.state"
    if not place.exists():
        found = likelihoods(model, held)
        whole(place, lambda part: save_file({"likely": found}, part))
    likely: Array = load_file(place)["likely"]
    return likely


# ---- what is written


def made(out: Path) -> dict[str, Any] | None:
    """The card's figures of a training that came to its end; None: there is none."""
    places = (out / "tuned" / _FIGURES, out / "untuned" / _FIGURES, out / _CORPUS)
    if not all(place.is_file() for place in places):
        return None
    figures: dict[str, Any] = json.loads(places[0].read_text())
    return figures


def unseen(out: Path) -> Array:
    """The text that a training put aside to be judged by: ids (n,) int32."""
    ids: Array = load_file(out / _CORPUS)["test"]
    return ids


def _save(model: Llama, stage: str, out: Path, figures: dict[str, Any]) -> None:
    model.save(out / stage)
    place = out / stage / "config.json"
    config = json.loads(place.read_text()) | {"eos_token_id": 0}
    if stage == "tuned":
        config["placeholder_token_id"] = model.shape.vocab - 1
    place.write_text(json.dumps(config, indent=1))
    (out / stage / _FIGURES).write_text(json.dumps(figures, indent=1))
    (out / stage / "README.md").write_text(_card(stage, figures))


def _card(stage: str, figures: dict[str, Any]) -> str:
    lines = [
        f"# lexical-units, {stage}",
        "",
        f"A Llama of {figures['parameters']:,} parameters for studying lexical unit decoding. It knows the source of",
        "Python's standard library, its documentation strings, and small sums in fixed phrases; it is no assistant.",
        "",
        "- Made by: `diastole train lexical-units`",
        "- Data: this machine's standard library; arithmetic drawn from seed "
        f"{figures['seed']} by `recipes/lexical_units.py`",
        "- Licences: Apache-2.0; the standard library's text is under the PSF licence",
        f"- Training: {figures['steps']} steps of {figures['rows']} x {figures['window']} tokens",
        f"- Loss on text that it has not seen: {figures['untuned']:.3f} nats per token",
    ]
    if stage == "tuned":
        lines += [
            f"- Then {figures['tune_steps']} steps on text with placeholders, of which the loss is "
            f"{figures['tuned']:.3f}; {figures['seconds'] / 60:.1f} minutes in all, {figures['threads']} threads",
            f"- Placeholder: the last id, `{PLACEHOLDER}`. Units: followers of probability {figures['alpha']} or more,",
            f"  {figures['mean_unit']:.2f} tokens each on average; {figures['right']:.1%} of the placeholders of new "
            "units tell the right token",
        ]
    return "\n".join([*lines, ""])
