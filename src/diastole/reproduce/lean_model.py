"""A model, and no measurement, of many workers: the engine's own plans, carried out on paper.

All workers begin at once and need the same time for a piece. To begin an output and to merge a part of one cost so many
pieces' time, and a second pass costs a launch. The constants are assumptions; the shapes are what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from diastole.kernels.table import compiled
from diastole.reproduce.must import at_most, equal_to
from diastole.reproduce.study import Study

TILE = 256  # tokens of a piece for heads of 64, as the paper has it
ROOM = 1 << 40  # rows of partial results: on paper there is always room
BEGIN, MERGE, LAUNCH = 0.1, 0.1, 2.0  # in pieces' time


class Outcome(NamedTuple):
    """What a schedule comes to."""

    time: float  # in pieces' time
    occupancy: float  # pieces beside those that all workers could have done while the busiest did his


def carried_out(schedule: str, outputs: int, context: int, workers: int, parts: int = 1) -> Outcome:
    """So many (request, head) pairs of one query row and equal contexts."""
    module = compiled()
    assert module is not None
    rows, hi = np.ones(outputs, np.int32), np.full(outputs, context, np.int32)
    items = np.array(module.plan(schedule, rows, np.zeros_like(hi), hi, TILE, workers, parts, ROOM), np.int64)
    worker, output, pieces = items[:, 0], items[:, 1], items[:, 3] - items[:, 2]
    done = np.bincount(worker, pieces, workers)
    shared = np.unique(worker * outputs + output)  # who takes part in which
    begun = np.bincount(shared // outputs, minlength=workers)
    several = np.bincount(shared % outputs, minlength=outputs)
    merging = MERGE * float(several.max() if several.max() > 1 else 0)
    pass_ = LAUNCH if schedule == "fixed" and several.max() > 1 else 0.0
    busiest = float((done + BEGIN * begun).max())
    return Outcome(LAUNCH + busiest + merging + pass_, float(done.sum() / (workers * done.max())))


def model(study: Study) -> None:
    study.note(
        f"model, not measured: 108, 132 and 8 x 132 workers are arithmetic on the engine's plans. A launch costs "
        f"{LAUNCH:g} pieces' time, beginning an output and merging a part {BEGIN:g} each; no GPU's speed is told"
    )
    context, most = (1 << 18, 128) if study.quick else (1 << 19, 256)
    worst, steps, shrinks = 0.0, 0.0, True
    for workers in (108, 132, 8 * 132):
        outputs = [n for n in (8, 16, 32, 56, 64, 96, 128, 200, 256) if n <= most]
        lean, heads, fixed = (_over(outputs, context, workers, *way) for way in (("shares",), ("heads",), ("fixed", 8)))
        gains = [h.time / own.time for h, own in zip(heads, lean, strict=True)]
        shrinks &= all(a > b for a, b in pairwise(g for n, g in zip(outputs, gains, strict=True) if n <= workers))
        for own, best in zip(lean, (_whole(n * context // TILE, workers) for n in outputs), strict=True):
            worst = max(worst, best - own.occupancy)
        for other, best in zip(fixed, (_whole(8 * n, workers) for n in outputs), strict=True):
            steps = max(steps, abs(best - other.occupancy))
        for name, found in (("lean", lean), ("one head per worker", heads), ("8 parts each", fixed)):
            study.curve(
                f"model: occupancy of {workers} workers",
                outputs,
                [o.occupancy for o in found],
                label=name,
                xlabel="heads x batch",
                ylabel="share of time",
            )
        study.table(
            f"model, {workers} workers, {context:,} tokens: times as fast as one head per worker, and occupancies",
            ("heads x batch", "lean", "8 parts", "occupied: lean", "occupied: heads", "occupied: 8 parts"),
            [
                (n, h.time / own.time, h.time / f.time, own.occupancy, h.occupancy, f.occupancy)
                for n, own, h, f in zip(outputs, lean, heads, fixed, strict=True)
            ],
        )
    study.check(
        "model: occupancy of lean shares, behind the best that whole pieces allow", worst, at_most(0.001), claim="100%"
    )
    study.check("model: the gain grows as heads x batch falls below the workers", shrinks, equal_to(True))
    study.check("model: occupancy of equal parts comes in steps, n / ceil(n) for n per worker", steps, at_most(0.001))


def _whole(pieces: int, workers: int) -> float:
    """Occupancy where pieces are dealt out as equally as can be."""
    return pieces / workers / -(-pieces // workers)


def _over(outputs: Sequence[int], context: int, workers: int, schedule: str, parts: int = 1) -> list[Outcome]:
    return [carried_out(schedule, n, context, workers, parts) for n in outputs]
