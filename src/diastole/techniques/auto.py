"""Auto: drafters and a controller that suit any model and load, with nothing to choose.

What followed the text's last three tokens or more when they came before is guessed (``ngram``); where they did not,
what a table of the model's own text says, and what this text adds to it (``aded``; without a table of this model it
begins empty). ``smartspec`` verifies of that what pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diastole import registry
from diastole.slots import Facts
from diastole.spec.either import Either
from diastole.types import UserError

NEEDS = frozenset({"paged_kv"})


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    kmax: int = 15  # guesses per stream and step, at most


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if not 1 <= p.kmax <= 64:
        raise UserError(f"auto: kmax must be between 1 and 64, not {p.kmax}", param="use")
    guesses = f"nodes={min(p.kmax, 4)},depth=3,search=chain"
    try:
        table = _made(f"aded:{guesses}", facts)
    except UserError:  # nobody has counted this model's text
        table = _made(f"aded:{guesses},table=none", facts)
    drafters = [_made(f"ngram:k={p.kmax},least=3", facts)["draft"], table["draft"]]
    return {"draft": Either(drafters), **_made(f"smartspec:kmax={p.kmax}", facts)}


def _made(spec: str, facts: Facts) -> dict[str, Any]:
    module, params = registry.load(registry.Spec.parse(spec))
    slots: dict[str, Any] = module.TECHNIQUE(params, facts)
    return slots
