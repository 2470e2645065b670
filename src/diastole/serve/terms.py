"""Terms: what the server allows one request beyond what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from diastole.serve.ceilings import Ceilings
from diastole.serve.forecast import Forecast
from diastole.serve.notes import Notes
from diastole.serve.quota import Account
from diastole.serve.running import Running


@dataclass(frozen=True, slots=True)
class Terms:
    """Every generation runs on some.

    Args:
        account: pays for its tokens.
        forecast: of its service.
        most_seconds: until its first token; above that it is turned away.
        space: whose cached prefixes it may find; None: everybody's.
        running: where it is listed while it runs.
        owner: who may see it there and cancel it.
        notes: are told what came of it.
    """

    account: Account
    ceilings: Ceilings
    forecast: Forecast
    most_seconds: float
    space: str | None
    running: Running
    owner: bytes
    notes: Notes

    def salt(self, own: str) -> str:
        """The salt of its prefixes, from the request's own. Names of keys hold no slash, so no own salt can reach into
        another key's space."""
        return own if self.space is None else f"key/{self.space}/{own}"
