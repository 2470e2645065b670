"""Job: what a calibration is handed, and what becomes of its result."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from diastole.bench.rig import Rig
from diastole.slots import Facts
from diastole.types import Array, UserError
from diastole.weights.calibration import Calibration, about


@dataclass(frozen=True, slots=True)
class Job:
    """One calibration."""

    rig: Rig  # the model, with nothing switched on, its keys and values as they are
    ids: Sequence[int]  # of the texts, in order
    tell: Callable[[int], None] = lambda n: None  # hears of each n tokens that are done


def techniques() -> list[str]:
    """Those that can be calibrated."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(p.stem.replace("_", "-") for p in files if p.stem not in {"__init__", "job"})


def of(technique: str) -> ModuleType:
    """A technique's calibration.

    Raises:
        UserError: it has none.
    """
    name = technique.replace("_", "-")
    if name not in techniques():
        raise UserError(f"{technique!r:.60} needs no calibration; these do: {', '.join(techniques())}", param="name")
    return importlib.import_module(f"diastole.calibrate.{name.replace('-', '_')}")


def calibrate(technique: str, facts: Facts, job: Job, said: Mapping[str, str]) -> Calibration:
    """Measure, and say of what.

    Args:
        said: more about it, for people.

    Raises:
        UserError: the texts are too short.
    """
    tensors: dict[str, Array] = of(technique).measure(job)
    digest = hashlib.sha256(np.asarray(job.ids, np.int32).tobytes()).hexdigest()[:12]
    own = {"tokens": f"{len(job.ids)} (sha256 {digest})", "kernels": job.rig.kernels}
    return Calibration(tensors, {**said, **own, **about(technique, facts)})
