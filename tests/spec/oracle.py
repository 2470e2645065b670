"""Drafters that know what will be said: they ran it before. They guess right, or wrong in places, as told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from diastole.engine.service import Service
from diastole.types import Draft, Request, Stream
from techniques import owed


class Oracle:
    """Slot ``draft``.

    Args:
        plain: makes a service that drafts nothing and is otherwise the same.
        right: how many of its guesses are right; the others come at random places.
        branches: guesses side by side at every place, of which one may be right.
    """

    def __init__(self, plain: Callable[[], Service], right: float = 1.0, branches: int = 1) -> None:
        self.plain, self.right, self.branches = plain, right, branches
        self.rng = np.random.default_rng(1)
        self.said: dict[tuple[bytes, int, str], list[int]] = {}
        self.drafted = 0

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        return [self._guess(s, n) for s, n in zip(streams, lengths, strict=True)]

    def _guess(self, stream: Stream, n: int) -> Draft:
        n = int(self.rng.integers(0, n + 1))  # rounds of all sizes
        past = stream.known - len(stream.req.inputs)
        future = self._answer(stream)[past : past + n]
        if self.branches == 1:
            tokens = [t if self.rng.random() < self.right else int(self.rng.integers(owed.VOCAB)) for t in future]
            self.drafted += len(tokens)
            return Draft(tokens)
        tokens, parents, on = [], [], -1  # a comb: one of the nodes of a level has children
        for t in future:
            if len(tokens) + self.branches > n:
                break
            level = [int(x) for x in self.rng.permutation(owed.VOCAB)[: self.branches] if x != t]
            true = int(self.rng.integers(len(level)))
            if self.rng.random() < self.right:
                level[true] = t
            parents += [on] * len(level)
            on = len(tokens) + true
            tokens += level
        self.drafted += len(tokens)
        return Draft(tokens, parents)

    def _answer(self, stream: Stream) -> list[int]:
        key = np.asarray(stream.req.inputs, np.int32).tobytes(), stream.index, repr(stream.req.params)
        if key not in self.said:
            for index, ids in answers(self.plain(), stream.req).items():
                self.said[key[0], index, key[2]] = ids
        return self.said[key]


def answers(of: Service, request: Request) -> dict[int, list[int]]:
    """What each choice of a request says, alone."""
    life = owed.Life(of)
    said: dict[int, list[int]] = {}
    life.engine.add(replace(request, id="alone"))
    while life.engine.busy:
        for event in life.engine.step() or ():
            said.setdefault(event.choice, []).extend(c.id for c in event.data.chosen)
    return said
