"""Staying: live streams and pictures, which end where they began.

A picture whose engine dies is made again elsewhere: its seed makes the same one, and steps that were told are not told
again. What a live stream has heard is gone with its engine, so it ends with an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from diastole.cluster.members import Member
from diastole.frontend import wire

log = logging.getLogger("diastole.cluster")

MOST_ATTEMPTS = 8  # of one picture; then it ends with an error


class Stay:
    """One of them."""

    def __init__(self, wish: wire.Open | wire.Paint) -> None:
        self.wish = wish
        self.at: Member | None = None  # None: it waits for an engine
        self.attempts = 0
        self.told = 0  # steps of a picture


class Staying:
    """All that are alive.

    Args:
        members: that run any of them.
        busy: how much one has to do.
        on_reply: is told what comes of them.
    """

    def __init__(
        self, members: Sequence[Member], busy: Callable[[Member], int], on_reply: Callable[[wire.Reply], None]
    ) -> None:
        self._members, self._busy, self._on_reply = members, busy, on_reply
        self._all: dict[str, Stay] = {}

    def __len__(self) -> int:
        return len(self._all)

    def at(self, member: Member) -> int:
        """How many it has."""
        return sum(stay.at is member for stay in self._all.values())

    def open(self, wish: wire.Open | wire.Paint) -> None:
        """One comes in."""
        stay = self._all[wish.id] = Stay(wish)
        self._begin(stay)

    def feed(self, feed: wire.Feed) -> None:
        """Live input, which is lost where its stream is."""
        stay = self._all.get(feed.id)
        if stay is not None and stay.at is not None:
            stay.at.put(feed)

    def abort(self, command: wire.Abort) -> None:
        """Nobody needs it any more."""
        stay = self._all.pop(command.id, None)
        if stay is not None and stay.at is not None and stay.at.there:
            stay.at.put(command)

    def end(self) -> None:
        """Nobody needs any of them."""
        for id in list(self._all):
            self.abort(wire.Abort(id))

    def heard(self, member: Member, reply: wire.Opened | wire.Beat | wire.Painted | wire.Unfed) -> None:
        """An engine says what has come of one."""
        stay = self._all.get(reply.id)
        if stay is None or stay.at is not member:
            return
        match reply:
            case wire.Beat(final=True):
                del self._all[reply.id]
            case wire.Painted(done=done, finish=None):
                if done <= stay.told:
                    return
                stay.told = done
            case wire.Painted():
                del self._all[reply.id]
        self._on_reply(reply)

    def ended(self, member: Member, reply: wire.Refused | wire.Over) -> bool:
        """An engine says that it ends early; False: it is none of these."""
        stay = self._all.get(reply.id)
        if stay is None or stay.at is not member:
            return False
        del self._all[reply.id]
        self._on_reply(reply)
        return True

    def changed(self, member: Member) -> None:
        """An engine is lost, back, or given up."""
        for stay in list(self._all.values()):
            if stay.at is member and not member.there:
                stay.at = None
                if isinstance(stay.wish, wire.Open) or stay.attempts == MOST_ATTEMPTS:
                    log.warning("%.80s is lost with %s", stay.wish.id, member.name)
                    self._fail(stay)
                    continue
                log.warning("picture %.80s is made again: %s was lost", stay.wish.id, member.name)
            if stay.at is None:
                self._begin(stay)

    def _begin(self, stay: Stay) -> None:
        """Give it to who has least to do; if nobody is there, it waits until somebody is."""
        there = [m for m in self._members if m.there]
        if there:
            stay.attempts += 1
            stay.at = min(there, key=lambda m: (self.at(m) + self._busy(m), m.name))
            stay.at.put(stay.wish)
        elif all(m.given_up for m in self._members):
            self._fail(stay)

    def _fail(self, stay: Stay) -> None:
        del self._all[stay.wish.id]
        self._on_reply(wire.Over(stay.wish.id, "error"))
