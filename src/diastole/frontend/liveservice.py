"""LiveService: a model of live input as its users see it: samples in, readings out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from diastole.config import ServiceConfig
from diastole.frontend import wire
from diastole.frontend.client import Line
from diastole.frontend.supervisor import Supervisor
from diastole.live import LiveParams


class LiveService:
    """One service of a running engine.

    Args:
        card: what the engine says of it.
        config: its settings.
    """

    def __init__(self, card: wire.LiveCard, engine: Supervisor, config: ServiceConfig, created: int) -> None:
        self.card = card
        self.aliases, self.created = config.aliases, created
        self._engine = engine

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the model, with their defaults."""
        return self.card.options

    def readings(self, id: str, params: LiveParams) -> AsyncIterator[Line]:
        """Open a stream: that it is open, what is found in it until its input has ended, and which pieces were refused.
        Leaving the iterator early ends it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine failed on it.
            EngineLost: the engine died, or is being restarted.
        """
        return self._engine.client.readings(wire.Open(id, self.name, params))

    def feed(self, id: str, data: bytes, first: int | None = None, last: bool = False) -> None:
        """Samples of a stream that is open, all channels of one after the other as float32."""
        self._engine.client.feed(wire.Feed(id, data, first, last))
