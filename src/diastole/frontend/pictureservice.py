"""PictureService: a model of pictures as its users see it: a wish in, steps and a picture out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from diastole.config import ServiceConfig
from diastole.frontend import wire
from diastole.frontend.client import Step
from diastole.frontend.supervisor import Supervisor
from diastole.params import PictureParams
from diastole.types import SLO


class PictureService:
    """One service of a running engine.

    Args:
        card: what the engine says of it.
        config: its settings.
    """

    def __init__(self, card: wire.PictureCard, engine: Supervisor, config: ServiceConfig, created: int) -> None:
        self.card = card
        self.aliases, self.created = config.aliases, created
        self._engine = engine

    @property
    def name(self) -> str:
        return self.card.name

    def painted(self, id: str, params: PictureParams, slo: SLO | None = None) -> AsyncIterator[Step]:
        """Have a picture made: each step of it, until it is done. Leaving the iterator early aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine ended it.
            EngineLost: the engine died, or is being restarted.
        """
        return self._engine.client.painted(wire.Paint(id, self.name, params, slo))
