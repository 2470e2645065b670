"""The default ``compose`` policy: who runs in this step, and how much.

Emitting asks come first, because a late token is seen and a late chunk is not. Then known input (prompts) fills what is
left of the step, cut to a token cap and to the seconds that the step may take.
"""

from __future__ import annotations

from collections.abc import Sequence

from diastole.loops.slices import fit, in_time
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
        grants = in_time([a for a in asks if a.emits], seconds, cost)
        used = sum([n for _, n in grants])
        for ask in sorted([a for a in asks if not a.emits], key=lambda a: (a.due, a.stream.serial)):
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
