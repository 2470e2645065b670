"""The text face of an engine: what the server, the command line and Python programs talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diastole.config import Config
    from diastole.frontend.backend import Backend


def build(config: Config) -> Backend:
    """A backend with its engine in a process of its own; nothing is loaded before ``start``."""
    from diastole.frontend.backend import Backend

    return Backend(config)
