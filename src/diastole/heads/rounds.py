"""Early exits: what a stream's rounds have shown of each, and what rounds cost. DEL, sections 4.1 and 4.2
(arXiv 2504.05598)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.heads.exits import Heads
from diastole.nn.decoder import Decoder
from diastole.slots import KVStore
from diastole.types import Array, Batch

PRIOR = 0.5  # right and wrong shadow tokens that every exit is thought to have had
SURE, UNSURE = 0.75, 0.25  # how likely those thought themselves
POOR = 3  # rounds in a row, after which a stream whose guesses do not pay rests; one, after a rest
LONGER = 4  # times that a rest doubles, where guesses do not pay after it either
SIZES = (0, 1, 2, 4, 8, 16, 32, 64)  # rows whose costs are measured
TIMES = 4  # of which the quickest counts

# ---- what is learned


def right(stats: Array) -> Array:
    """How likely each exit's guess is right: stats (4, C) of ``Notes`` -> (C,)."""
    share: Array = (stats[0] + PRIOR) / (stats[0] + stats[1] + 2 * PRIOR)
    return share


def thresholds(stats: Array) -> Array:
    """How sure each exit must be of a guess to go on, halfway between where it was right and where it was wrong: (C,),
    never NaN."""
    sure = (stats[2] + PRIOR * SURE) / (stats[0] + PRIOR)
    unsure = (stats[3] + PRIOR * UNSURE) / (stats[1] + PRIOR)
    middle: Array = (sure + unsure) / 2
    return middle


def tokens_per_cost(alpha: Array, costs: Array) -> Array:
    """alpha (C,) of ``right``, costs (C, G) of rounds with 0 to G - 1 guesses -> (C, G)."""
    expected = np.cumsum(alpha[:, None] ** np.arange(costs.shape[1]), 1)
    worth: Array = expected / costs
    return worth


@dataclass(slots=True)
class Notes:
    """What one stream's rounds have shown."""

    stats: Array  # (4, C): right and wrong shadow tokens, and their summed probabilities; decayed by round
    rounds: int = 0
    tokens: float = 0.0  # that rounds brought, and what they cost; decayed as the others
    spent: float = 0.0
    poor: int = 0  # rounds in a row below break-even
    resting: int = 0  # steps still to come
    rests: int = 0  # in a row; each good round takes one back

    def learn(self, matched: Array, odds: Array, omega: float) -> None:
        """matched, odds (C, n) of positions whose context was right."""
        new = [matched.sum(1), (~matched).sum(1), (odds * matched).sum(1), (odds * ~matched).sum(1)]
        self.stats = omega * self.stats + np.array(new)

    def judge(self, tokens: int, spent: float, plain: float, omega: float, rest: int) -> None:
        """A round brought these tokens at this cost; plain: cost of one without guesses."""
        self.rounds += 1
        self.tokens, self.spent = omega * self.tokens + tokens, omega * self.spent + spent
        if self.tokens * plain >= self.spent:
            self.poor, self.rests = 0, max(self.rests - 1, 0)
            return
        self.poor += 1
        if rest and self.poor >= (1 if self.rests else POOR):
            self.resting, self.poor, self.tokens, self.spent = rest << min(self.rests, LONGER), 0, 0.0, 0.0
            self.rests += 1


# ---- what rounds cost


@dataclass(frozen=True, slots=True)
class Costs:
    """What a step of so many streams costs.

    Args:
        layers: of the model.
        most: guesses of a round.
        shadows: exits whose shadow tokens each row costs, on average.
        stack, exit, head: of all layers, of an exit's head and of the model's, each for ``SIZES`` rows.
    """

    layers: int
    most: int
    shadows: float
    stack: Array
    exit: Array
    head: Array

    def plain(self, streams: int) -> float:
        """Without guesses."""
        return float(_at(self.stack, streams) + _at(self.head, streams))

    def rounds(self, exit: int, streams: int) -> Array:
        """With 0 to ``most`` guesses for each: (most + 1,)."""
        guesses = np.arange(self.most + 1)
        below, rows = exit / self.layers, streams * (1 + guesses)
        one = _at(self.stack, streams) * below
        draft = guesses * (one + _at(self.exit, streams))
        verify = one + _at(self.stack, rows) * (1 - below) + _at(self.head, rows)
        costs: Array = draft + verify + _at(self.exit, rows * self.shadows)
        return costs


def counted(layers: int, most: int) -> Costs:
    """The published costs: layers that a stream goes through; heads, and rows that come together, are free."""
    free = np.zeros(len(SIZES))
    return Costs(layers, most, 0.0, free + layers, free, free)


def measured(decoder: Decoder, kv: KVStore, heads: Heads, most: int, shadows: float) -> Costs:
    """In seconds, once, at the start, on a page that nobody holds yet. They decide how much is guessed, never what is
    said; what attention to long texts costs is not in them."""
    layers, rng = len(decoder.blocks), np.random.default_rng(0)
    took = np.full((TIMES, 3, len(SIZES)), np.inf)
    took[:, :, 0] = 0.0
    for nth in range(TIMES):  # all sizes take turns, so that a slow moment is not one size's alone
        for i, n in enumerate(SIZES[1:], 1):
            x, at, ends = rng.standard_normal((n, decoder.width), np.float32), np.arange(n), np.array([0, n], np.int32)
            pos, no = at.astype(np.int32), np.zeros(n, np.int32)
            b = Batch((), (), no, pos, ends, at, np.zeros((1, 1), np.int32), no, pos + 1, no[:0])
            began = [time.perf_counter()]
            decoder.part(b, {"kv": kv}, x.copy(), 0, layers)
            began.append(time.perf_counter())
            heads.say([(0, x)])
            began.append(time.perf_counter())
            decoder.logits(x.copy())
            began.append(time.perf_counter())
            took[nth, :, i] = np.diff(began)
    return Costs(layers, most, shadows, *took.min(0))


def _at(curve: Array, rows: Any) -> Any:
    """Between what was measured; beyond it, on in the last direction."""
    slope = max((curve[-1] - curve[-2]) / (SIZES[-1] - SIZES[-2]), 0.0)
    return np.interp(rows, SIZES, curve) + slope * np.maximum(np.asarray(rows) - SIZES[-1], 0)
