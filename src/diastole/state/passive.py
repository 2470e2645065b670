"""Passive: what a store answers that lets rows stay as they are written. Stores that do not, override what they do."""

from __future__ import annotations

from collections.abc import Mapping

from diastole.slots import NO_END, Rooms
from diastole.state.lease import Lease, Pool
from diastole.types import Array, KVFormat, Stream


class Passive:
    """See ``slots.KVStore``."""

    passive = True
    revocable = True
    pools: Mapping[str, Pool] = {}

    @property
    def rooms(self) -> Rooms | None:
        return None

    def suit(self, prefers: KVFormat) -> None:
        """Nothing changes."""

    def settle(self, stream: Stream) -> Mapping[str, Lease] | None:
        return {}

    def seal(self, stream: Stream, upto: int) -> None:
        """Nothing happens."""

    def span(self, stream: Stream) -> int:
        return NO_END

    def words(self, tokens: Array) -> Array:
        return tokens

    def shareable(self, stream: Stream, units: int) -> int:
        return units
