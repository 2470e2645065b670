"""What steps were measured to take, kept in a file between starts: the first request is scheduled as well as the last
one before.

JSON, read with bounds: a file that is damaged, too large or holds impossible numbers counts as none. It is written
whole beside its place and then renamed; of two that write at once, the later one stays.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from diastole.engine.cost import Samples

log = logging.getLogger("diastole.frontend")
LARGEST = 4 << 20  # bytes of a file
MOST = 1e15  # of any number in it


class Learned(msgspec.Struct):
    """The file."""

    version: int
    samples: list[Samples]


@runtime_checkable
class Learner(Protocol):
    """A cost model that can be taken up where it was left."""

    @property
    def samples(self) -> list[Samples]:
        """What it goes by now."""
        ...

    def take_up(self, samples: list[Samples]) -> None:
        """Go on from these."""
        ...

    def knows(self, units: int) -> bool:
        """Whether it has seen steps of about this size."""
        ...


class CostFile:
    """A cost model's memory.

    Args:
        path: the file; its directory is made.
    """

    VERSION = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, cost: Learner) -> bool:
        """Give ``cost`` what was kept; whether there was anything."""
        try:
            with self.path.open("rb") as f:
                data = f.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ValueError(f"it has more than {LARGEST} bytes")
            learned = msgspec.json.decode(data, type=Learned)
            if learned.version != self.VERSION:
                return False
            for of in learned.samples:
                _check(of)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as e:  # msgspec's errors are ValueErrors
            log.warning("%s is not used: %s", self.path, e)
            return False
        cost.take_up(learned.samples)
        return bool(learned.samples)

    def write(self, cost: Learner) -> None:
        """Keep what ``cost`` knows. What cannot be written is told, and lost."""
        beside = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(Learned(self.VERSION, cost.samples)))
            beside.replace(self.path)
        except OSError as e:
            log.warning("what steps cost is not kept: %s", e)
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def _check(of: Samples) -> None:
    if not (0 <= of.size < 256 and 0 <= of.context < 64):
        raise ValueError(f"size {of.size} and context {of.context} are none")
    if not all(math.isfinite(x) and 0 <= x <= MOST for step in of.steps for x in step):
        raise ValueError("a number is negative, too large or none at all")
    if not all(step[4] > 0 for step in of.steps):
        raise ValueError("a step took no time")
