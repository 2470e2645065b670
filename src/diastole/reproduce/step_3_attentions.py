"""Small models whose attentions keep equally much of a token: MFA beside what others do with the same cache.

Each is trained once, for three million tokens, by `diastole train mfa`; what text of the same kind costs that none has
seen is computed here, by the engine's own models in float32. For a quick look much smaller ones are trained in the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diastole.bench.quality import built, log_softmax, logits_of
from diastole.kernels.table import Ops, load
from diastole.recipes import mfa as recipe
from diastole.reproduce.must import at_most, equal_to
from diastole.reproduce.study import Study
from diastole.types import Array, UserError

FOLDER = Path("step-3-models")  # where `diastole train mfa` puts them
SEEDS = (0, 1)
BASE, OURS = "gqa", "mfa"
QUICK = 6  # steps


class Judged(NamedTuple):
    """A model on text that it has not seen."""

    plan: recipe.Plan
    windows: Mapping[str, Array]  # nats per token of each window, by domain

    @property
    def nats(self) -> Mapping[str, float]:
        """Per token, by domain."""
        return {name: float(of.mean()) for name, of in self.windows.items()}

    @property
    def loss(self) -> float:
        return float(np.concatenate(list(self.windows.values())).mean())


def models(study: Study) -> Sequence[recipe.Plan]:
    """Those to be compared: both kinds with the first seed, and whatever else is there.

    Raises:
        UserError: one of them is not there, or was trained otherwise.
    """
    if study.quick:
        shapes = {kind: recipe.shape(kind, layers=2, context=256) for kind in recipe.KINDS}
        return [recipe.Plan(kind, of, QUICK, study.seed, 1024) for kind, of in shapes.items()]
    plans = [recipe.Plan(kind, recipe.shape(kind), seed=seed) for seed in SEEDS for kind in recipe.KINDS]
    found = []
    for plan in plans:
        try:
            recipe.expect(plan, recipe.place(FOLDER, plan))
            found.append(plan)
        except UserError:
            if plan.seed == SEEDS[0] and plan.kind in {BASE, OURS}:
                raise
    return found


def attentions(study: Study, plans: Sequence[recipe.Plan]) -> None:
    """What MFA loses, and what all keep and cost."""
    folder = FOLDER / "quick" if study.quick else FOLDER
    if study.quick:
        with study.progress("training four attentions", QUICK * len(plans)) as told:
            for plan in plans:
                recipe.train(plan, recipe.place(folder, plan), lambda progress: told())
    ops = load()
    with study.progress("judging them", len(plans)) as told:
        found = []
        for plan in plans:
            found.append(_judged(plan, recipe.place(folder, plan), ops))
            told()
    attention = {j.plan.kind: j.plan.shape.attention for j in found}
    kept = {of.kv_values for of in attention.values()}
    study.check("numbers that all kinds keep of a token and layer: how many different", len(kept), equal_to(1))
    tokens = plans[0].steps * plans[0].tokens
    if not study.quick:
        _beside(study, found, tokens)
    study.note(f"small models, trained on {tokens:,} tokens each")
    study.table(
        "attentions with equal caches: nats per token of text that none has seen",
        ("kind", "seed", "numbers kept", "multiply-adds per token seen", *found[0].nats, "mean"),
        [(j.plan.kind, j.plan.seed, attention[j.plan.kind].kv_values, attention[j.plan.kind].flops // 2,
          *(round(x, 3) for x in j.nats.values()), round(j.loss, 3)) for j in found],
    )  # fmt: skip


def _beside(study: Study, found: Sequence[Judged], tokens: int) -> None:
    of = {(j.plan.kind, j.plan.seed): j for j in found}
    seeds = [seed for seed in SEEDS if {(BASE, seed), (OURS, seed)} <= set(of)]
    apart = [of[OURS, seed].loss - of[BASE, seed].loss for seed in seeds]
    lost = float(np.mean(apart))
    each = {name: np.mean([of[OURS, s].nats[name] - of[BASE, s].nats[name] for s in seeds]) for name in found[0].nats}
    by_seed = ", ".join(f"{x:.3f} with seed {seed}" for x, seed in zip(apart, seeds, strict=True))
    by_domain = ", ".join(f"{name} {x:+.3f}" for name, x in each.items())
    study.check(
        f"loss of MFA beside that of grouped queries with an equal cache, nats per token, {len(seeds)} seeds",
        lost,
        at_most(0.02),
        claim="lower",
        why=f"{by_seed}; {by_domain}; {tokens / 1e6:.1f} million tokens at one rate of learning for all"
        if lost > 0.02
        else "",
    )


def _judged(plan: recipe.Plan, place: Path, ops: Ops) -> Judged:
    model = built(place, "f32", ops)
    _, apart = recipe.data(plan, place, fresh=False)
    found = {}
    for name, ids in apart.items():
        n = min(plan.shape.context, len(ids) - 1)
        count = max(min((len(ids) - 1) // n, recipe.WINDOWS), 1)
        windows = [ids[i * n : i * n + n + 1] for i in range(count)]
        found[name] = np.array([_nats(logits_of(model, ops, w[:-1]), w[1:]) for w in windows])
    return Judged(plan, found)


def _nats(logits: Array, ids: Array) -> float:
    """Of ids (n,), each told by its row of logits (n, V)."""
    return float(-log_softmax(logits)[np.arange(len(ids)), ids].mean())
