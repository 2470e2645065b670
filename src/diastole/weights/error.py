"""The one error of this package."""

from __future__ import annotations

from pathlib import Path

from diastole.types import UserError


class WeightsError(UserError):
    """A model file cannot be used; the message names the file and what is wrong with it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}", param="model", code="invalid_model")
