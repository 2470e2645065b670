"""Slices: how much of what streams could run fits into a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from diastole.slots import CostModel
from diastole.types import Ask, Grant


def fit(grants: Sequence[Grant], ask: Ask, most: int, seconds: float, cost: CostModel) -> int:
    """The largest n up to ``most`` with which a step of these grants and n units of ``ask`` is predicted to stay within
    ``seconds``; 0: none."""
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


def in_time(emitting: Sequence[Ask], seconds: float, cost: CostModel) -> list[Grant]:
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


def parted(asks: Iterable[Ask]) -> tuple[list[Ask], list[Ask]]:
    """Those of streams that speak with their next step, and those of streams that take something in: these in order of
    arrival."""
    emitting: list[Ask] = []
    absorbing: list[Ask] = []
    for ask in asks:
        (emitting if ask.emits else absorbing).append(ask)
    return emitting, sorted(absorbing, key=lambda a: a.stream.serial)


def whole(asks: Iterable[Ask]) -> list[Grant]:
    """All that they could run."""
    return [Grant(a.stream, a.hi) for a in asks]


def together(asks: Sequence[Ask], most: int) -> list[Grant]:
    """The first of them, whole, that come to at most ``most`` units; one at least."""
    grants: list[Grant] = []
    used = 0
    for ask in asks:
        if grants and used + ask.hi > most:
            break
        grants.append(Grant(ask.stream, ask.hi))
        used += ask.hi
    return grants
