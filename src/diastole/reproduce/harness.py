"""The harness: finds reproductions by name, runs them, and keeps what they found."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diastole.papers import Paper
from diastole.reproduce.machine import commit
from diastole.reproduce.progress import Shown
from diastole.reproduce.report import as_json
from diastole.reproduce.study import Study
from diastole.types import UserError


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What a paper's file gives."""

    paper: Paper
    about: str
    run: Callable[[Study], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of running it."""

    reproduction: Reproduction
    study: Study
    date: str
    seconds: float
    error: Exception | None = None

    @property
    def holds(self) -> bool:
        return self.error is None and self.study.holds

    @property
    def verdict(self) -> str:
        """One sentence."""
        return self.study.verdict if self.error is None else f"failed: {_said(self.error)}"

    def json(self) -> dict[str, Any]:
        """All of it, for programs."""
        paper = self.reproduction.paper
        return {
            "paper": paper.name,
            "title": paper.title,
            "id": paper.id,
            "about": self.reproduction.about,
            "holds": self.holds,
            "verdict": self.verdict,
            **as_json(self.study),
            "date": self.date,
            "seconds": round(self.seconds, 1),
        }


def _said(error: Exception) -> str:
    """An exception in one line; of those made for users only what they say."""
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def load(paper: Paper) -> Reproduction:
    """Import a paper's reproduction."""
    module = importlib.import_module(f"diastole.reproduce.{paper.module}")
    return Reproduction(paper, module.PAPER, module.run)


def run(paper: Paper, quick: bool, seed: int, shown: Shown) -> Outcome:
    """Run a paper's reproduction. What goes wrong inside is part of the outcome, and what it prints goes to stderr."""
    commit()  # before anybody changes the sources meanwhile
    study = Study(quick, seed, shown)
    reproduction = Reproduction(paper, "", lambda study: None)
    date, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    error: Exception | None = None
    with contextlib.redirect_stdout(sys.stderr):
        try:
            reproduction = load(paper)
            reproduction.run(study)
        except Exception as e:  # a defect of ours, whatever it is: the others still run
            error = e
    return Outcome(reproduction, study, date, time.perf_counter() - began, error)


def save(outcome: Outcome, folder: Path) -> Path:
    """Write the result to ``folder``/NAME.json, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    from diastole.reproduce.machine import machine, versions

    where = {"machine": machine(), "versions": versions(), "commit": commit()}
    text = json.dumps({**outcome.json(), **where}, indent=1, ensure_ascii=False, allow_nan=False)
    path = folder / f"{outcome.reproduction.paper.name}.json"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text + "\n", "utf-8")
        part.replace(path)
    except OSError as e:
        raise UserError(f"the result cannot be written: {e}", param="results") from None
    return path
