"""Where pulled files are kept: $DIASTOLE_CACHE, else $XDG_CACHE_HOME/diastole, else ~/.cache/diastole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20


def root() -> Path:
    """The cache directory."""
    own = os.environ.get("DIASTOLE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diastole"


def folder(asset: str) -> Path:
    """Where an asset's files are kept."""
    return root() / "assets" / asset


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other processes; made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def stamp(path: Path, digest: str) -> None:
    """Remember that this file, as it lies there now, had this hash."""
    seen = path.stat()
    note = {"size": seen.st_size, "mtime": seen.st_mtime_ns, "sha256": digest}
    path.with_name(path.name + ".stamp").write_text(json.dumps(note))


def intact(path: Path, digest: str, thorough: bool = False) -> bool:
    """Whether the file is there with this hash. A stamp that fits spares reading it, unless ``thorough``."""
    try:
        seen = path.stat()
    except OSError:
        return False
    if not thorough:
        try:
            note = json.loads(path.with_name(path.name + ".stamp").read_text())
            if note == {"size": seen.st_size, "mtime": seen.st_mtime_ns, "sha256": digest}:
                return True
        except (OSError, ValueError):
            thorough = True  # no stamp, or a damaged one: read the file
    if sha256(path) != digest:
        return False
    stamp(path, digest)
    return True
