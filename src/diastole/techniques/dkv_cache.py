"""dkv-cache: of a masked text, places that were settled a step ago keep the keys and values that they had then.

A settled place's keys and values change much in the step in which its mask becomes a token, and little afterwards: so
they are kept from one step later on, and all are computed again now and then. An approximation, but for ``refresh=1``.

- ``variant=decode``: masked places and those settled last are computed; all others are kept. A new block begins anew.
- ``variant=prefill``: the prompt is computed once and kept; all of the answer is computed in every step.
- ``variant=pd``: the prompt is computed once; the answer as by ``decode``.
- ``variant=greedy``: where the order is random and drawn before: what was settled last, what is settled next, and
  ``window`` masked places beside these; all others are kept, masks too.

Source: Ma, Yu, Fang, Wang, "dKV-Cache: The Cache for Diffusion Language Models" (arXiv 2505.15781), sections 3.2 to
3.4. Keys are kept rotated, which is the same, since places do not move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from diastole.params import SamplingParams
from diastole.slots import Facts
from diastole.slots_steps import Canvas
from diastole.types import Array, UserError

NEEDS = frozenset({"random_rows"})
FIRST = 2  # steps of all places, before anything is kept

Variant = Literal["decode", "prefill", "pd", "greedy"]
Shift = Literal["un", "right", "un_right"]


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs.

    Raises:
        UserError: one is out of range.
    """

    variant: str = "decode"  # decode, prefill, pd or greedy
    refresh: int = 8  # every so many steps all is computed; 1: always, which is exact; 0: never again
    window: int = 4  # greedy: masked places beside those that are settled next
    shift: str = "un"  # of models whose rows tell the next place: a row is kept once that one is settled (un), its own
    # is (right), or both are (un_right)
    delay: int = 1  # steps from settling to keeping; 0 keeps what was computed of the mask, to show what that costs

    def __post_init__(self) -> None:
        for name, known in (("variant", get_args(Variant)), ("shift", get_args(Shift))):
            if getattr(self, name) not in known:
                message = f"dkv-cache: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r:.40}"
                raise UserError(message, param="use")
        for name, low, high in (("refresh", 0, 1 << 20), ("window", 0, 1 << 20), ("delay", 0, 1)):
            if not low <= getattr(self, name) <= high:
                message = f"dkv-cache: {name} must be {low} to {high}, not {getattr(self, name)}"
                raise UserError(message, param="use")


def TECHNIQUE(params: Params, facts: Facts) -> Mapping[str, Any]:
    """The policy, in the slot ``refresh``."""
    return {"refresh": DKVCache(params)}


class DKVCache:
    """See above."""

    def __init__(self, params: Params) -> None:
        self.params, self.approximate = params, params.refresh != 1

    def check(self, params: SamplingParams) -> None:
        rule = "low_confidence" if params.unmasking is None else params.unmasking.remasking
        if self.params.variant == "greedy" and rule != "random":
            message = "dkv-cache:variant=greedy must know what is settled next: ask for remasking=random"
            raise UserError(message, param="remasking", code="invalid_value")

    def rows(self, canvas: Canvas) -> Array:
        every, p = canvas.length, self.params
        all_of_it = np.arange(every, dtype=np.int32)
        if canvas.step == 0 or p.refresh == 1:
            return all_of_it
        answer = all_of_it[canvas.prompt :]
        again = canvas.step < FIRST or canvas.fresh or (p.refresh > 0 and canvas.step % p.refresh == 0)
        if p.variant == "prefill" or (p.variant == "pd" and again):
            return answer
        if again:
            return all_of_it
        if p.variant == "greedy":
            return self._narrow(canvas)
        rows = np.flatnonzero(~self._kept(canvas)).astype(np.int32)
        return rows[rows >= canvas.prompt] if p.variant == "pd" else rows

    def _kept(self, canvas: Canvas) -> Array:
        """(L,) whether a place's row is kept."""
        settled = ~canvas.masked
        if self.params.delay and canvas.latest is not None:
            settled[canvas.latest] = False  # a step ago they were masks
        if not canvas.shift or self.params.shift == "right":
            return settled
        told = np.append(settled[1:], settled[-1:])  # what a row tells is settled
        found: Array = told if self.params.shift == "un" else told & settled
        return found

    def _narrow(self, canvas: Canvas) -> Array:
        latest, chosen = canvas.latest, canvas.chosen
        assert latest is not None
        assert chosen is not None
        others = np.setdiff1d(np.flatnonzero(canvas.masked), chosen)
        apart = np.abs(others[:, None] - chosen).min(1) if len(others) and len(chosen) else np.zeros(len(others))
        beside = others[np.argsort(apart, kind="stable")[: self.params.window]]
        found: Array = np.unique(np.concatenate([latest, chosen, beside])).astype(np.int32)
        return found
