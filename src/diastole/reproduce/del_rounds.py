"""Rounds of ``del``, watched from outside while requests run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.engine.service import Service
from diastole.heads.rounds import right
from diastole.sample import Chosen
from diastole.types import Array, Draft, Stream


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one request."""

    request: str
    said: int  # tokens of the answer before it
    exit: int
    guesses: int
    kept: int
    tokens: int  # that it brought
    thought: Array  # (C,) how likely each exit's guess was thought to be right, afterwards


def drafter_of(service: Service) -> Any:
    """What guesses."""
    return service.loop.drafter  # type: ignore[attr-defined]


@contextmanager
def watch(service: Service) -> Iterator[list[Round]]:
    """While inside, the rounds of ``del``, as they come."""
    drafter = drafter_of(service)
    seen: list[Round] = []
    verified = drafter.verified

    def told(stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        said = stream.known - stream.own.prompt
        verified(stream, draft, nodes, chosen)
        thought = right(stream.scratch["del"].stats)
        seen.append(Round(stream.req.id, said, drafter.exit, len(draft.tokens), len(nodes), len(chosen), thought))

    drafter.verified = told
    try:
        yield seen
    finally:
        drafter.verified = verified


def hold(service: Service, exit: int) -> None:
    """Make every round end at this exit and be as long as ``max_draft``, while all exits are still looked at and
    weighed: what a static pair does, and all that DEL does besides."""
    drafter = drafter_of(service)
    begin, best = drafter._begin, drafter._best

    def weighed(streams: Sequence[Stream], costs: Array) -> int:
        best(streams, costs)
        return exit

    def as_if_static(stream: Stream, n: int, costs: Array) -> Any:
        drafter.static = True  # which decides nothing but the length here
        try:
            return begin(stream, n, costs)
        finally:
            drafter.static = False

    drafter._best, drafter._begin = weighed, as_if_static


def estimated(rounds: Sequence[Round]) -> Array:
    """What was thought of each exit, on average over tokens: (C,)."""
    mean: Array = np.average([r.thought for r in rounds], 0, [r.tokens for r in rounds])
    return mean


def accepted(rounds: Sequence[Round]) -> float:
    """Of the guesses whose context was right, the share that was right."""
    kept, wrong = sum(r.kept for r in rounds), sum(r.kept < r.guesses for r in rounds)
    return kept / max(kept + wrong, 1)


def by_request(rounds: Sequence[Round]) -> list[list[Round]]:
    """Rounds of each request, in the order in which they came."""
    found: dict[str, list[Round]] = {}
    for r in rounds:
        found.setdefault(r.request, []).append(r)
    return [*found.values()]
