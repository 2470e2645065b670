"""Forecast: how long a new request would wait for its first token, judged by how long earlier ones waited.

A prompt that joins others which have had no first token yet waits about as long as it takes to work off all their
tokens and its own. Its wait divided by that sum gives the pace: seconds per token of waiting prompts. Whatever holds
them up is in it: streams that decode, full pools, prefixes that are cached, other services on the same cores. Waits
scatter, so who is turned away is judged by a slower pace: the usual one and twice its mean deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from diastole.clock import Clock
from diastole.serve.errors import ApiError

LEAST = 128  # tokens that each prompt counts for: even the shortest takes a step
NEWS = 0.2  # share of the newest measurement in the pace and in its deviation
CAUTION = 2.0  # deviations by which the pace is taken to be slower than usual


@dataclass(slots=True)
class Place:
    """One prompt in the queue."""

    weight: int
    load: int  # its tokens and those before it
    since: float  # seconds
    waits: bool = True


class Forecast:
    """Of one service. All methods belong to one event loop.

    Args:
        count: is told of each refusal, as of the limit "wait".
    """

    def __init__(self, clock: Clock, count: Callable[[str], None]) -> None:
        self._clock, self._count = clock, count
        self.waiting = 0  # tokens of prompts that have had no first token yet
        self.pace: float | None = None  # seconds per token of these; None: nothing is known yet
        self.deviation = 0.0  # of it, in the mean

    def seconds(self, prompts: Sequence[int]) -> float:
        """How long new prompts of so many tokens would usually wait for their first tokens."""
        return self._load(prompts) * (self.pace or 0.0)

    def _load(self, prompts: Sequence[int]) -> int:
        return self.waiting + sum(map(_weight, prompts))

    def check(self, prompts: Sequence[int], most: float) -> None:
        """Turn a request away that may well wait longer than ``most`` seconds. Nobody is turned away while nobody
        waits: then a forecast that was too dark is soon put right.

        Raises:
            ApiError: 429.
        """
        wait = self._load(prompts) * ((self.pace or 0.0) + CAUTION * self.deviation)
        if self.waiting and wait > most:
            self._count("wait")
            told = math.ceil(wait)
            message = f"The first token would come after {told} s, and {most:g} s is the limit. Try again in {told} s."
            raise ApiError(429, message, code="overloaded", retry_after=told)

    @contextmanager
    def queue(self, prompt: int) -> Iterator[Place]:
        """A prompt of so many tokens waits until ``served``, or until it is given up."""
        weight = _weight(prompt)
        self.waiting += weight
        place = Place(weight, self.waiting, self._clock.now())
        try:
            yield place
        finally:
            if place.waits:
                self.waiting -= weight
                if self._pace(place) > (self.pace or 0.0):  # and it would have been longer still
                    self._learn(place)

    def served(self, place: Place) -> None:
        """A prompt has its first token; telling it again changes nothing."""
        if place.waits:
            place.waits = False
            self.waiting -= place.weight
            self._learn(place)

    def _learn(self, place: Place) -> None:
        new = self._pace(place)
        if self.pace is None:
            self.pace = new
        self.deviation += NEWS * (abs(new - self.pace) - self.deviation)
        self.pace += NEWS * (new - self.pace)

    def _pace(self, place: Place) -> float:
        return (self._clock.now() - place.since) / place.load


def _weight(prompt: int) -> int:
    return max(prompt, LEAST)
