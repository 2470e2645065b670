"""SmartSpec: verify as many guesses as make the most tokens per second, under the load that there is, and often none.

Liu, Daniel, Hu, Kwon, Li, Mo, Cheung, Deng, Stoica, Zhang: "Optimizing Speculative Decoding for Serving Large Language
Models Using Goodput", 2024, arXiv 2406.14066. Goodput is the expected number of tokens that a step brings over the
seconds that it is predicted to take; it is evaluated for every number of guesses. Needs a drafter beside it.

Which guesses: the paper's variant by confidence. All drafts of a step are put in one order by the probability that a
guess is reached and right, and the step verifies the first m of them. A guess's probability given that its parent is
right is the share of those tested that were right, among guesses as deep of which the drafter thought alike (where the
first was right, the next mostly is), times how much better or worse this stream's guesses have been than that; only
guesses that were reached count as tested, so the estimate is not biased. Ours: predicted seconds come from the engine's
own cost model, which learns from every step; and steps with guesses are timed beside plain ones (``spec/trust.py``), so
that guessing rests where it costs more than it brings, whatever was predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from diastole.slots import CostModel, Facts
from diastole.spec.tree import outcomes
from diastole.spec.trust import Trust
from diastole.types import Ask, Draft, Grant, Stream, UserError

NEEDS: frozenset[str] = frozenset()
NAME = "smartspec"
LEVELS = 16  # of what drafters think of their guesses
DEPTHS = 3  # that are told apart: the first guess, the second, deeper ones
SHRINK = 8.0  # tested guesses that what is expected counts for, before a stream's own do
CURVES = 64  # kept
MOST_NODES = 64  # of a step
LEAST, MOST = 0.01, 0.99  # of a probability


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    kmax: int = 8  # guesses per stream and step, at most
    per_request: bool = (
        True  # each guess on its own; false: all streams verify equally many, as in the paper's base form
    )
    off_bias: float = 1.1  # guessing must be so many times as good as not to
    window: int = 100  # tested guesses that are remembered
    refresh_steps: int = 20  # steps between two looks at what steps cost
    trust: float = 3.0  # steps whose time guessing may lose, beside what it saved, before nothing is drafted
    probe_every: int = 100  # steps of that rest, unless somebody new comes; more where it was in vain before


class SmartSpec:
    """Slot ``pace``."""

    foresees = True
    blind = False

    def __init__(self, p: Params) -> None:
        _check(p)
        self.p = p
        self._tested = [0.0] * ((LEVELS + 1) * DEPTHS)
        self._right = [0.0] * ((LEVELS + 1) * DEPTHS)
        self._curves: dict[tuple[int, int], tuple[int, list[float]]] = {}
        self._step = self._reading = 0  # streams that do not speak yet
        self.trust = Trust(p.trust, p.probe_every)
        self.expected = 0.0  # tokens that the last step that was decided about is thought to bring

    def lengths(self, asks: Sequence[Ask], cost: CostModel) -> Sequence[int]:
        self._step += 1
        speaking = sum([a.emits for a in asks])
        reading = len(asks) - speaking
        if reading < self._reading and speaking:
            self.trust.joined(speaking)
        self._reading = reading
        if not self.trust.asks(speaking):
            return [a.lo if a.emits else a.hi for a in asks]
        return [min(a.hi, a.lo + self.p.kmax) if a.emits else a.hi for a in asks]

    def trim(
        self, grants: Sequence[Grant], drafts: Mapping[Stream, Draft], cost: CostModel
    ) -> Mapping[Stream, Sequence[int]]:
        plain = [Grant(s, min(n, s.left)) for s, n in grants]  # as if nobody guessed
        nodes = [(gain, s, i) for s, draft in drafts.items() for i, gain in enumerate(self._gains(s, draft))]
        counts: Sequence[int]  # of nodes that may be verified together
        if self.p.per_request:
            nodes.sort(key=lambda node: -node[0])  # a child's is always below its parent's
            del nodes[MOST_NODES:]
            counts = range(len(nodes) + 1)
        else:
            nodes.sort(key=lambda node: node[2])
            counts = [*accumulate(Counter(i for _, _, i in nodes).values(), initial=0)]
        seconds = self._curve(plain, len(nodes), cost)
        speaking = float(sum([n == s.left for s, n in plain]))
        tokens = [*accumulate([gain for gain, _, _ in nodes], initial=speaking)]
        best, most = 0, tokens[0] / seconds[0] * self.p.off_bias
        for count in counts[1:]:
            if tokens[count] / seconds[count] > most:
                best, most = count, tokens[count] / seconds[count]
        best = min(max(best, self.trust.leaving), len(nodes))
        self.expected = tokens[best]
        return _taken(nodes[:best])

    def stepped(self, streams: int, tokens: int, seconds: float, asked: bool) -> None:
        self.trust.stepped(streams, tokens, self.expected, seconds, asked)

    def _curve(self, plain: Sequence[Grant], most: int, cost: CostModel) -> list[float]:
        """Predicted seconds of this step with 0 to ``most`` guesses."""
        key = (len(plain), sum([n for _, n in plain]))
        at, seconds = self._curves.get(key, (0, []))
        if len(seconds) <= most or self._step - at >= self.p.refresh_steps:
            seconds = [*accumulate(cost.rising(plain, most).tolist(), max)]  # a larger step that seems quicker is noise
            if len(self._curves) >= CURVES:
                self._curves.clear()
            self._curves[key] = self._step, seconds
        return seconds

    # ---- how likely guesses are right

    def _gains(self, stream: Stream, draft: Draft) -> list[float]:
        """Of each node, the probability that it is reached and right: parents before children, none above its own."""
        right, expected = stream.scratch.get(NAME, (0.0, 0.0))
        factor = (right + SHRINK) / (expected + SHRINK)
        gains: list[float] = []
        for i, kind in enumerate(_kinds(draft)):
            own = min(max(self._rate(kind) * factor, LEAST), MOST)
            parent = i - 1 if draft.parents is None else draft.parents[i]
            gains.append(own if parent < 0 else gains[parent] * own)
        return gains

    def _rate(self, kind: int) -> float:
        """The share of right ones among guesses of this kind."""
        level = kind // DEPTHS
        prior = 0.5 if level == LEVELS else (level + 0.5) / LEVELS
        return (self._right[kind] + SHRINK * prior) / (self._tested[kind] + SHRINK)

    def learn(self, stream: Stream, draft: Draft, nodes: Sequence[int]) -> None:
        keep = 1 - 1 / self.p.window
        right, expected = stream.scratch.get(NAME, (0.0, 0.0))
        kinds = _kinds(draft)
        for node, was in outcomes(draft, nodes):
            kind = kinds[node]
            right, expected = right * keep + was, expected * keep + self._rate(kind)
            self._tested[kind] = self._tested[kind] * keep + 1
            self._right[kind] = self._right[kind] * keep + was
        stream.scratch[NAME] = right, expected


def _taken(nodes: Sequence[tuple[float, Stream, int]]) -> dict[Stream, list[int]]:
    """The nodes by their stream, ascending."""
    taken: dict[Stream, list[int]] = {}
    for _, stream, node in nodes:
        taken.setdefault(stream, []).append(node)
    return {stream: sorted(own) for stream, own in taken.items()}


def _kinds(draft: Draft) -> list[int]:
    """Of each node, what the drafter thinks of it, as one of ``LEVELS`` (one more where it does not say), and how deep
    it is."""
    depths: list[int] = []
    for i in range(len(draft.tokens)):
        parent = i - 1 if draft.parents is None else draft.parents[i]
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    if draft.odds is None:
        return [LEVELS * DEPTHS + min(depth, DEPTHS - 1) for depth in depths]
    levels = [min(max(int(o * LEVELS), 0), LEVELS - 1) for o in draft.odds]
    return [level * DEPTHS + min(depth, DEPTHS - 1) for level, depth in zip(levels, depths, strict=True)]


def _check(p: Params) -> None:
    for name, low in (("kmax", 1), ("window", 1), ("refresh_steps", 1), ("probe_every", 1)):
        if getattr(p, name) < low:
            raise UserError(f"{NAME}: {name} must be at least {low}, not {getattr(p, name)}", param="use")
    if not p.trust >= 0:
        raise UserError(f"{NAME}: trust must be at least 0, not {p.trust}", param="use")
    if not p.off_bias >= 1:
        raise UserError(f"{NAME}: off_bias must be at least 1, not {p.off_bias}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"pace": SmartSpec(p)}
