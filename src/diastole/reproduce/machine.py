"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from diastole import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """The processor, how many cores may be used, the operators that run here, and memory in bytes."""
    from diastole.kernels.table import load, processor

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": load().name,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"python": platform.python_version(), "diastole": __version__}
    for name in ("numpy", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> dict[str, Any] | None:
    """The commit that the sources are of and whether they were changed since; None where they are no checkout.
    As it was when first asked."""
    if _git("ls-files", "--error-unmatch", "papers.toml") is None:
        return None
    return {"id": _git("rev-parse", "HEAD"), "dirty": _git("status", "--porcelain", "--", ".") != ""}


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
