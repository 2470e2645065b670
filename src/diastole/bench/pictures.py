"""Pictures made by turns: Diastole as it comes, with techniques, and diffusers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from diastole.bench.filling import Painter
from diastole.params import PictureParams
from diastole.types import Array

OURS, PEER = "diastole", "diffusers"
PAUSE = 0.3  # seconds before a turn: some engines' threads go on spinning for a while after theirs


@dataclass(frozen=True, slots=True)
class Made:
    """How one of them fared with so many pictures together."""

    name: str
    together: int
    seconds: tuple[float, ...]  # of each round
    apart: float  # from Diastole's own pictures, the largest difference of a pixel; they lie between -1 and 1

    @property
    def each(self) -> float:
        """Seconds of a picture."""
        return median(self.seconds) / self.together


def measure(
    path: Path,
    together: int,
    wish: PictureParams,
    use: Sequence[str],
    peer: bool,
    rounds: int,
    threads: int,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Made]:
    """All of them, the first turn of each not counted. A wish for no label is for the first where the model has labels.

    Raises:
        UserError: the model or a technique does not fit, or the peer is not installed.
    """
    with ExitStack() as stack:
        makers: dict[str, Callable[[], Array]] = {}
        for name, techniques in {OURS: (), **{f"{OURS} with {spec}": tuple(spec.split("+")) for spec in use}}.items():
            painter = stack.enter_context(Painter(str(path), techniques, together, threads))
            label = wish.label if wish.label is not None or not painter.service.model.classes else 0
            wishes = [PictureParams(wish.steps, label, wish.guidance, wish.seed + i) for i in range(together)]
            makers[name] = _by(painter, wishes)
        if peer:
            from diastole.bench.diffusing import Diffusers
            from diastole.kernels.table import physical_cores

            other = Diffusers(path, threads or physical_cores())
            makers[PEER] = lambda: other.paint(wishes)
        pictures = {}
        for name, make in makers.items():
            tell(f"{name}: warming up")
            pictures[name] = make()
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(rounds):
            for name, make in makers.items():
                tell(f"{together} together, round {turn + 1} of {rounds}: {name}")
                time.sleep(PAUSE)
                began = time.perf_counter()
                make()
                seconds[name].append(time.perf_counter() - began)
    own = pictures[OURS]
    return [Made(n, together, tuple(s), float(np.abs(pictures[n] - own).max())) for n, s in seconds.items()]


def _by(painter: Any, wishes: Sequence[PictureParams]) -> Callable[[], Array]:
    return lambda: np.stack([p.x for p in painter.paint(wishes)])


def times(made: Sequence[Made], name: str, over: str) -> tuple[float, float, float] | None:
    """How many times as fast one is as another: the median of the rounds' ratios, the least and the greatest; None if
    the other took no part."""
    of = {m.name: m.seconds for m in made}
    if over not in of:
        return None
    each = [b / a for a, b in zip(of[name], of[over], strict=True)]
    return median(each), min(each), max(each)
