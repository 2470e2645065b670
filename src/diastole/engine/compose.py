"""The default ``compose`` policy: who runs in this step, and how much.

Emitting asks come first, because a late token is seen and a late chunk is not. Then known input (prompts) fills what is
left of the step, cut to a token cap and to the seconds that the step may take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diastole.slots import CostModel
from diastole.types import Ask, Grant


class Mixed:
    """Emitting streams, then chunks in order of their deadlines.

    Args:
        cap: most units in one step; streams that emit are cut only by the seconds, the least urgent first, and what
            runs in pieces is cut between these.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap

    def compose(self, asks: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
        grants = _in_time([a for a in asks if a.emits], seconds, cost)
        used = sum(g.n for g in grants)
        for ask in sorted((a for a in asks if not a.emits), key=lambda a: (a.due, a.stream.serial)):
            if grants and used >= self.cap:
                break
            room = min(ask.hi, max(self.cap - used, ask.lo))  # exceeded once, by a piece
            n = fit(grants, ask, room, seconds, cost)
            if n < ask.lo and grants:
                break
            n = max(n, ask.lo)
            grants.append(Grant(ask.stream, n))
            used += n
        return grants


def _in_time(emitting: list[Ask], seconds: float, cost: CostModel) -> list[Grant]:
    """All that they could run; else the least that the most urgent of them could, as far as it is predicted to end in
    time, and at least one."""
    grants = [tuple.__new__(Grant, (a.stream, a.hi)) for a in emitting]
    if math.isinf(seconds) or cost.predict(grants) <= seconds:
        return grants
    urgent = sorted(emitting, key=lambda a: (a.due, a.stream.serial))
    grants = [Grant(a.stream, a.lo) for a in urgent]
    keep, over = min(1, len(grants)), len(grants) + 1
    while over - keep > 1:
        middle = (keep + over) // 2
        keep, over = (middle, over) if cost.predict(grants[:middle]) <= seconds else (keep, middle)
    return grants[:keep]


def fit(grants: list[Grant], ask: Ask, most: int, seconds: float, cost: CostModel) -> int:
    """The largest n up to ``most`` with which the step is predicted to stay within ``seconds``; 0: none."""
    if most <= 0:
        return 0
    if math.isinf(seconds) or cost.predict([*grants, Grant(ask.stream, most)]) <= seconds:
        return most
    low, high = 0, most  # the cost grows with n: bisect
    while high - low > 1:
        middle = (low + high) // 2
        if cost.predict([*grants, Grant(ask.stream, middle)]) <= seconds:
            low = middle
        else:
            high = middle
    return low
