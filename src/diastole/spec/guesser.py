"""Guesser: what a drafter answers that only guesses. Drafters that do more override what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diastole.sample import Chosen
from diastole.slots import KVStore
from diastole.slots_drafts import Span
from diastole.state.lease import Pool
from diastole.types import Batch, Draft, Stream


class Guesser:
    """See ``slots.Drafter``."""

    most = 1
    looks = False

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        return {}

    def ready(self, batch: Batch) -> Batch:
        return batch

    def verified(self, stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        """Nothing is learned."""
