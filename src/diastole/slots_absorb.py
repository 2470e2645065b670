"""The slot of reading otherwise: ``absorb``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from diastole.slots import KVStore
from diastole.types import Batch, Stream

if TYPE_CHECKING:
    from diastole.state.lease import Pool


class Absorber(Protocol):
    """Slot ``absorb``: another way for a prompt into a stream's state than through the whole model, for requests that
    allow it. Rows that come so are not what the model would write: a stream that takes this way finds nothing in the
    prefix cache and leaves nothing there."""

    def settle(self, kv: KVStore, pages: int) -> Mapping[str, Pool]:
        """Before the first step: where the model's rows are kept, and on how many pages. Where it keeps something of
        streams itself, by the name under which they lease it."""
        ...

    def takes(self, stream: Stream) -> bool:
        """Whether this stream takes that way. It depends on the request alone."""
        ...

    def grow(self, stream: Stream, n: int) -> bool:
        """Make room for its next ``n`` units; False: there is none."""
        ...

    def ready(self, batch: Batch) -> Batch:
        """The batch of this step: where rows of it take that way, with a ``Batch.relay``."""
        ...

    def absorbed(self, stream: Stream) -> None:
        """More units of this stream, up to ``done``, are in its state."""
        ...
