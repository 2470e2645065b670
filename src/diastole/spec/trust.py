"""Trust: whether guessing pays, judged by what steps took and not by what was predicted.

Guesses cost more than the rows that they add: whoever makes them, decides about them and takes them back takes his
time too. So every now and then some steps are plain, in the middle of others, and every step in which somebody guessed
is set against these. What it saved is credit, what it lost is taken from it, and without credit guessing rests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEPT, FEWEST = 9, 2  # times of plain steps of so many streams: kept, and that a judgement takes
EVERY = 48  # steps with guesses between plain ones
ROW = 3  # plain steps in a row, the first of which is not timed: it finds the caches as guessing has left them
WORST = -1.0  # of one step: it may have been the machine
LONG = 0.99  # of what was expected and came before, in how right expectations are
SURE = 20.0  # tokens that they count for before anything came
MOST = 10.0  # credit, in plain steps
RETRY = 1.0  # after a rest
NEW = 0.5  # for each stream that begins to speak, over how many there are
LAST = 0.25  # under that a step is one of the last before a rest
LONGER = 3  # times that a rest doubles, if guessing does not pay after it either


@dataclass(slots=True)
class _Plain:
    """Plain steps of so many streams."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    since: int = 0  # steps with guesses, since the last
    row: int = 0  # of them that have come since then

    @property
    def due(self) -> bool:
        return not self.known or 0 < self.row < ROW or self.since >= EVERY

    def came(self, seconds: float) -> None:
        self.row += 1
        if self.row > 1:
            self.seconds.append(seconds)
        self.since = 0

    @property
    def known(self) -> bool:
        return len(self.seconds) >= FEWEST

    @property
    def usual(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2]


class Trust:
    """Credit in plain steps' time.

    Args:
        start: credit in the beginning.
        rest: steps without guesses when it is used up.
    """

    def __init__(self, start: float, rest: int) -> None:
        self.start, self.rest = start, rest
        self.credit = start
        self._plain: dict[int, _Plain] = {}
        self._came = self._expected = 0.0  # guesses that were right lately, and that were thought to be
        self._resting = 0  # steps still to come
        self._rests = 0  # in a row, after which guessing did not pay either

    def asks(self, streams: int) -> bool:
        """Whether somebody is asked for guesses in this step, in which so many streams decode."""
        if self._resting:
            self._resting -= 1
            if not self._resting:
                self.credit = max(self.credit, RETRY)
            return False
        return not self._plain.setdefault(streams, _Plain()).due

    @property
    def leaving(self) -> bool:
        """Whether guessing is about to rest: a step whose guesses are not verified tells nothing about them."""
        return self.credit < LAST

    def joined(self, streams: int) -> None:
        """One of so many streams begins to speak, whom guesses may suit."""
        self.credit = min(self.credit + NEW / streams, MOST)
        if self.credit > 0:  # not before what the last ones lost is made up for
            self._resting = 0

    def stepped(self, streams: int, tokens: int, expected: float, seconds: float, asked: bool) -> None:
        """What a step took in which so many streams decoded, how much they said, and how much they were expected to.

        What is expected counts, as far as expectations have been right: whether one guess was right is chance.
        """
        plain = self._plain.setdefault(streams, _Plain())
        if not asked:
            plain.came(seconds)
            return
        plain.since += 1
        plain.row = 0
        self._came = LONG * self._came + tokens - streams
        self._expected = LONG * self._expected + expected - streams
        if plain.known and plain.usual > 0:
            more = (expected - streams) * (self._came + SURE) / (self._expected + SURE)
            self._weigh(max(1 + more / streams - seconds / plain.usual, WORST))

    def _weigh(self, gain: float) -> None:
        self.credit = min(self.credit + gain, MOST)
        if self.credit >= self.start:
            self._rests = 0
        elif self.credit < 0:
            self._resting = self.rest << self._rests
            self._rests = min(self._rests + 1, LONGER)
