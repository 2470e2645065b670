"""HostTier: a bounded shelf for the packed state of preempted streams."""

from __future__ import annotations

from collections.abc import Mapping

from diastole.state.lease import Blob


class HostTier:
    """Holds blobs by owner until taken back, at most ``capacity`` bytes of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._shelf: dict[int, dict[str, Blob]] = {}

    def __contains__(self, owner: int) -> bool:
        return owner in self._shelf

    def __len__(self) -> int:
        return len(self._shelf)

    def put(self, owner: int, blobs: Mapping[str, Blob]) -> bool:
        """Keep these; False, and nothing kept, when there is no room."""
        size = sum(b.nbytes for b in blobs.values())
        if self.used + size > self.capacity:
            return False
        self._shelf[owner] = dict(blobs)
        self.used += size
        return True

    def get(self, owner: int) -> Mapping[str, Blob]:
        """Look at what is kept."""
        return self._shelf[owner]

    def drop(self, owner: int) -> None:
        """Forget what is kept for ``owner``, if anything."""
        for blob in self._shelf.pop(owner, {}).values():
            self.used -= blob.nbytes
