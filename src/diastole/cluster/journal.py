"""Journal: what the router knows of every request, so that none is lost with an engine and none is answered twice.

Noise for sampling is a hash of a request's seed and the position, and rows do not depend on company: a request that is
run again says the same, token for token. So it is enough to know what was said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from diastole.cluster.affinity import keys_of
from diastole.cluster.members import Member
from diastole.frontend import wire

MOST_ATTEMPTS = 8  # of one request; then it ends with an error


@dataclass(eq=False)
class Wish:
    """One request."""

    add: wire.Add | wire.Embed  # as the front end gave it
    began: float  # seconds
    keys: list[bytes]  # of its prompt's blocks
    resumes: bool = True  # its text can go on from what was said
    attempt: int = 0
    at: Member | None = None  # who runs or holds it
    heading: Member | None = None  # who is to take it over
    held: int = 0  # units of its state at ``at``, once that waits to be taken over; 0: it does not
    said: dict[int, list[int]] = field(default_factory=dict)  # by choice
    ended: set[int] = field(default_factory=set)  # choices
    swallow: dict[int, int] = field(default_factory=dict)  # by choice, tokens that this attempt will say again

    @property
    def name(self) -> str:
        """What engines call it."""
        return f"{self.add.id}~{self.attempt}"

    @property
    def tokens(self) -> int:
        """Of its prompt."""
        return len(self.add.prompt) // 4

    @property
    def single(self) -> bool:
        """Whether it is for one text, which can go on elsewhere."""
        return self.resumes and isinstance(self.add, wire.Add) and self.add.params.n == 1

    def again(self) -> bool:
        """Begin another attempt; False: there were enough."""
        self.attempt += 1
        self.at = self.heading = None
        self.held = 0
        self.swallow = {} if self.single else {c: len(ids) for c, ids in self.said.items()}
        return self.attempt < MOST_ATTEMPTS

    def command(self, now: float, hold: bool) -> wire.Add | wire.Embed:
        """What an engine is told to do it."""
        if isinstance(self.add, wire.Embed):
            return msgspec.structs.replace(self.add, id=self.name)
        said = self.said.get(0, []) if self.single else []
        return msgspec.structs.replace(
            self.add, id=self.name, said=list(said), elapsed=now - self.began, hold=hold and self.single
        )

    def heard(self, spoken: wire.Spoken) -> wire.Spoken | None:
        """Take note of what an engine said; what of it is new, None: nothing."""
        if spoken.choice in self.ended:
            return None
        skip = min(self.swallow.get(spoken.choice, 0), len(spoken.ids))
        if skip:
            self.swallow[spoken.choice] -= skip
        new = spoken.ids[skip:]
        self.said.setdefault(spoken.choice, []).extend(new)
        if spoken.finish is not None:
            self.ended.add(spoken.choice)
        if not (new or spoken.settled) and spoken.finish is None:
            return None
        logprobs = spoken.logprobs if spoken.logprobs is None else spoken.logprobs[skip:]
        return msgspec.structs.replace(spoken, id=self.add.id, ids=new, logprobs=logprobs)

    @property
    def over(self) -> bool:
        """Whether all its choices have ended."""
        return isinstance(self.add, wire.Add) and len(self.ended) >= self.add.params.n


class Journal:
    """All requests that are alive."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._wishes: dict[str, Wish] = {}

    def __len__(self) -> int:
        return len(self._wishes)

    def __iter__(self) -> Iterator[Wish]:
        return iter(list(self._wishes.values()))

    def open(self, add: wire.Add | wire.Embed, resumes: bool = True) -> Wish:
        """A request comes in."""
        salt = add.salt if isinstance(add, wire.Add) else ""
        wish = self._wishes[add.id] = Wish(add, self.now(), keys_of(add.prompt, salt), resumes)
        return wish

    def get(self, id: str) -> Wish | None:
        """By the front end's id."""
        return self._wishes.get(id)

    def named(self, name: str) -> Wish | None:
        """By what engines call its present attempt; None: it is over, or this is of an earlier one."""
        wish = self._wishes.get(name.rpartition("~")[0])
        return wish if wish is not None and wish.name == name else None

    def close(self, wish: Wish) -> None:
        """It is over."""
        self._wishes.pop(wish.add.id, None)
