"""What all engines of a cluster are asked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diastole.cluster.members import Member
from diastole.frontend import wire

SECONDS = 5.0  # for all to answer


class Asking:
    """Questions that are open.

    Args:
        members: who is asked.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._open: list[_Asked] = []

    def ask(
        self,
        kind: type[wire.Stats | wire.Traced],
        command: Callable[[Member], wire.Command],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Ask all that are there; ``tell`` hears what those say that answer, by name."""
        asked = _Asked(kind, {m for m in self._members if m.there}, tell)
        self._open.append(asked)
        for member in asked.of:
            member.put(command(member))
        asyncio.get_running_loop().call_later(SECONDS, self._complete, asked, True)
        self._complete(asked)

    def heard(self, member: Member, reply: wire.Stats | wire.Traced) -> None:
        """An answer, to the first question of its kind that this member was asked."""
        for asked in self._open:
            if asked.kind is type(reply) and member in asked.of:
                asked.of.discard(member)
                asked.answers[member.name] = reply
                self._complete(asked)
                return

    def lost(self, member: Member) -> None:
        """It will not answer."""
        for asked in list(self._open):
            asked.of.discard(member)
            self._complete(asked)

    def _complete(self, asked: _Asked, late: bool = False) -> None:
        if asked in self._open and (late or not asked.of):
            self._open.remove(asked)
            asked.tell({m.name: asked.answers[m.name] for m in self._members if m.name in asked.answers})


class _Asked:
    """A question to all members, and the answers so far."""

    def __init__(
        self, kind: type[wire.Stats | wire.Traced], of: set[Member], tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.kind, self.of, self.tell = kind, of, tell
        self.answers: dict[str, Any] = {}
