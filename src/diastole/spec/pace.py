"""Pace without a controller: whatever a drafter can guess is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diastole.slots import CostModel
from diastole.types import Ask, Draft, Grant, Stream


class Unpaced:
    """The default ``pace`` policy."""

    foresees = False
    blind = True

    def lengths(self, asks: Sequence[Ask], cost: CostModel) -> Sequence[int]:
        return [a.hi for a in asks]

    def trim(
        self, grants: Sequence[Grant], drafts: Mapping[Stream, Draft], cost: CostModel
    ) -> Mapping[Stream, Sequence[int]]:
        return {stream: range(len(draft.tokens)) for stream, draft in drafts.items()}

    def learn(self, stream: Stream, draft: Draft, nodes: Sequence[int]) -> None:
        """Nothing is learned."""

    def stepped(self, streams: int, tokens: int, seconds: float, asked: bool) -> None:
        """Nor here."""
