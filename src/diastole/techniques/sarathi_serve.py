"""Sarathi-Serve: every step takes all streams that decode, then slices of prompts up to a budget; no text pauses.

Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, section 4. Streams
that decode are never cut; prompts follow in order of arrival, each with what the budget has left. The budget may be
given in tokens (``chunk``), in time (``tbt_ms``, the limit of the gap between tokens, kept by the cost model that
learns from every step), or both. Slices may shrink as a prompt gets longer (``low`` and ``high``), because later ones
look back on more. Needs nothing of the model; changes no text, for a prompt gives the same bits in any slices.

Beyond the paper: prompts may also go in order of their deadlines, or the shortest first (``order``), which does not let
a long prompt hold up all behind it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diastole.loops.slices import fit, parted
from diastole.slots import CostModel, Facts
from diastole.state.pages import PAGE
from diastole.types import Ask, Grant, Request, Stream, UserError

NEEDS = frozenset[str]()
TILE = 16  # rows that the kernels' tiles hold: a slice that is cut ends with a full one
TYPICAL = 512  # tokens of context that a stream is thought to have where a budget is derived from a time
MOST = 8192  # tokens of any slice
log = logging.getLogger("diastole.techniques")

Order = Callable[[Ask], Any]
ORDERS: dict[str, Order] = {
    "arrival": lambda ask: ask.stream.serial,
    "due": lambda ask: (ask.due, ask.stream.serial),
    "shortest": lambda ask: (ask.stream.left, ask.stream.serial),
}


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    chunk: int = 256  # most tokens in one step; 0: as many as fit in tbt_ms, found at start
    tbt_ms: float = 0.0  # most milliseconds of a step in which somebody decodes; 0: as promised to the requests
    order: str = "arrival"  # of prompts: arrival, due or shortest
    low: int = 0  # smallest slice of a long prompt; 0: slices do not shrink
    high: int = 0  # largest slice, of a prompt's beginning; with low only
    stages: int = 16  # steps from high to low
    max_tokens: int = 8192  # of a prompt, where the slice is the smallest


class Shrinking:
    """Slices that become smaller as a prompt goes on, so that each takes about as long: the public code's dynamic
    schedule, of which the paper does not speak."""

    def __init__(self, low: int, high: int, stages: int, most: int) -> None:
        self.low, self.high, self.stages, self.most = low, high, stages, most

    def __call__(self, done: int) -> int:
        """The most tokens of a slice that begins behind ``done`` tokens."""
        stage = min(done * self.stages // self.most, self.stages - 1)
        size = self.high - (self.high - self.low) * stage / max(self.stages - 1, 1)
        return max(int(size) // 32 * 32, self.low)


class StallFree:
    """Slot ``compose``.

    Args:
        chunk: tokens of a step; 0: found in ``settle``.
        tbt: seconds of a step in which somebody decodes.
        order: of prompts.
        slices: the most tokens of a slice behind so many of its prompt.
    """

    def __init__(self, chunk: int, tbt: float, order: Order, slices: Callable[[int], int]) -> None:
        self.chunk, self.tbt, self.order, self.slices = chunk or MOST, tbt, order, slices
        self._found = chunk == 0  # the time decides, and the budget is only a bound

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        emitting, absorbing = parted(asks)
        grants = [Grant(a.stream, a.hi) for a in emitting]
        limit = min(seconds, self.tbt / cost.worst) if emitting else seconds
        if emitting and math.isfinite(limit) and cost.predict(grants) > limit:
            grants = [Grant(a.stream, a.lo) for a in emitting]  # guesses go first, streams never
        used = sum(g.n for g in grants)
        for ask in sorted(absorbing, key=self.order):
            room = max(self.chunk - used, 0)  # those that decode may have used more than there is
            most = min(ask.hi, self.slices(ask.stream.done))
            n = _tiled(fit(grants, ask, min(most, room), limit, cost), ask.hi, used)
            if n < ask.lo:
                if not grants:
                    return [Grant(ask.stream, ask.lo)]
                break
            grants.append(Grant(ask.stream, n))
            used += n
            if n < most:  # the step is full: a few rows of the next would only break its tiles
                break
        return grants

    def settle(self, cost: CostModel, streams: int, context: int) -> None:
        """Find the budget that was left open, and tell what steps are predicted to take: ``cost`` has seen some.

        Raises:
            UserError: the streams alone take longer than ``tbt``.
        """
        if not math.isfinite(self.tbt):
            return
        request, done = Request("settle", "", (), None), min(TYPICAL, max(context - 1, 0))
        decodes = [Grant(Stream(request, 0, done + 1, done), 1)] * streams
        alone = cost.predict([Grant(Stream(request, 0, done + 1, done), 1)])
        if alone > self.tbt:
            least = math.ceil(alone * 1000)
            message = f"sarathi-serve: a step of one stream takes {least} ms here, and tbt_ms is {self.tbt * 1000:g}"
            raise UserError(f"{message}: give more", param="use")
        if self._found:
            ask = Ask(Stream(request, 0, MOST, 0), 1, MOST, 0.0, False)
            found = fit(decodes, ask, MOST, self.tbt, cost)
            self.chunk = streams + max(found // TILE * TILE, TILE)
            told = [
                f"{n}: {cost.predict([*decodes, Grant(ask.stream, n)]) * 1000:.1f} ms" for n in (32, 64, 128, 256, 512)
            ]
            log.info(
                "sarathi-serve: %d tokens a step within %g ms; %d streams and a slice of %s",
                self.chunk,
                self.tbt * 1000,
                streams,
                ", ".join(told),
            )


def _tiled(n: int, hi: int, used: int) -> int:
    """``n`` tokens, or so many fewer that the step's rows fill whole tiles, if there are more to come."""
    over = (used + n) % TILE
    return n if n == hi or n <= TILE or over >= n else n - over


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    if p.chunk == 0 and p.tbt_ms == 0:
        raise UserError("sarathi-serve: give chunk, tbt_ms, or both: a step needs a limit", param="use")
    if p.chunk < 0 or (p.chunk and p.chunk < facts.streams):
        message = f"sarathi-serve: chunk must be 0 or at least max_streams = {facts.streams}, not {p.chunk}"
        raise UserError(f"{message}: the streams that decode alone would not fit", param="use")
    if not (math.isfinite(p.tbt_ms) and p.tbt_ms >= 0):
        raise UserError(f"sarathi-serve: tbt_ms must be a number of at least 0, not {p.tbt_ms}", param="use")
    if p.order not in ORDERS:
        raise UserError(f"sarathi-serve: order must be one of {', '.join(ORDERS)}, not {p.order!r:.40}", param="use")
    if p.low and not 32 <= p.low <= p.high:
        message = f"sarathi-serve: low must be at least 32 and at most high = {p.high}, not {p.low}"
        raise UserError(message, param="use")
    if p.high and not p.low:
        raise UserError("sarathi-serve: high goes with low: slices shrink from high to low", param="use")
    if not (1 <= p.stages <= 1024 and p.max_tokens >= 1):
        raise UserError("sarathi-serve: stages must be between 1 and 1024, and max_tokens at least 1", param="use")
    if 0 < p.chunk < PAGE:
        log.warning("sarathi-serve: chunk = %d is less than a page of %d tokens: prompts become slow", p.chunk, PAGE)
    slices = Shrinking(p.low, p.high, p.stages, p.max_tokens) if p.low else lambda done: MOST
    return {"compose": StallFree(p.chunk, p.tbt_ms / 1000 or math.inf, ORDERS[p.order], slices)}
