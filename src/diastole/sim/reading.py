"""Reading profiles: TOML files of bounded size whose every key is checked."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from diastole.types import UserError

LARGEST = 1 << 20  # bytes
T = TypeVar("T")


def folder(below: str = "") -> Path:
    """Where the profiles are that come with the package."""
    return Path(__file__).with_name("profiles") / below


def names(below: str = "") -> list[str]:
    """Of these."""
    return sorted(p.stem for p in folder(below).glob("*.toml"))


def read(path: Path, kind: type[T], flag: str) -> T:
    """A file as a ``kind``.

    Raises:
        UserError: it cannot be read, is no TOML, or a key is wrong; the message names it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as e:
        raise UserError(f"--{flag} {path} cannot be read: {e.strerror}", param=flag) from None
    if len(raw) > LARGEST:
        raise UserError(f"--{flag} {path} has more than {LARGEST:,} bytes: this is no profile", param=flag)
    try:
        return msgspec.toml.decode(raw, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise UserError(f"--{flag} {path}: {e}", param=flag) from None
