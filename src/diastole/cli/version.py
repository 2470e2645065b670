"""``diastole version``."""

from __future__ import annotations


def version() -> None:
    """Print the version."""
    from diastole import __version__

    print(__version__)
