"""A long prompt arrives while others are answered: what their tokens wait for, apart and on one engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np

from diastole.bench.load.work import Wish
from diastole.bench.longtext import Corpus
from diastole.bench.neighbour import neighbour
from diastole.reproduce.distserve_system import Served, Shape, System
from diastole.reproduce.must import at_most
from diastole.reproduce.study import Study

CROWD, PROMPT = 4, 64  # streams that are answered, and tokens of their prompts
ARRIVES = 2.0  # seconds after them


@dataclass(frozen=True, slots=True)
class Waited:
    """Gaps between tokens of the crowd from when the prompt arrives until its first token, in seconds."""

    mean: float
    longest: float
    reading: float  # how long that is


async def stalls(study: Study, corpus: Corpus, shapes: Mapping[str, Shape], apart: str) -> None:
    """shapes: clusters by name, of which ``apart`` has one engine that reads and one that decodes."""
    long, output = (800, 600) if study.quick else (6_000, 2_000)
    rng = Random(study.seed)
    crowd = [Wish(list(corpus.cut(PROMPT, rng))[:PROMPT], output) for _ in range(CROWD)]
    everyone = [*crowd, Wish(list(corpus.cut(long, rng))[:long], 2)]
    reader = min(os.sched_getaffinity(0))
    found: dict[str, Waited] = {}
    alone: dict[str, float] = {}  # mean gap in the same seconds, by who is next door
    with study.progress("a long prompt arrives", len(shapes) + 2) as told:
        for name, shape in shapes.items():
            async with System(shape) as system:
                await system.serve(crowd[:1], [0.0])  # touches everything once
                served = await system.serve(everyone, [0.0] * CROWD + [ARRIVES])
                until = served.run.timelines[-1].times[0]
                found[name] = _waited(served, until)
                told()
                for busy in (False, True) if name == apart else ():
                    with neighbour(reader) if busy else nullcontext():
                        still = await system.serve(crowd, [0.0] * CROWD)
                    alone["a busy core" if busy else "nobody"] = _waited(still, until).mean
                    told()
    own, beside = alone["nobody"], alone["a busy core"]
    grown = found[apart].mean / own
    study.check(
        f"TPOT of {CROWD} streams while the other engine reads {long:,} tokens, beside nobody there",
        grown,
        at_most(1.5),
        unit="x",
        claim="the issue's",
        why="both cores read the machine's one memory",
    )
    study.note(
        f"of these {grown:.2f}x, {beside / own:.2f}x come of a core next door that is busy with its registers only; "
        f"the rest is memory and the cache that both share"
    )
    study.table(
        f"a prompt of {long:,} tokens arrives while {CROWD} streams are answered",
        ("cluster", "reading, s", "TPOT meanwhile, ms", "longest gap, ms"),
        [(name, w.reading, 1e3 * w.mean, 1e3 * w.longest) for name, w in found.items()],
    )


def _waited(served: Served, until: float) -> Waited:
    gaps = [g for line in served.run.timelines[:CROWD] for g in _gaps(line.times, until)]
    return Waited(float(np.mean(gaps)), max(gaps), until - ARRIVES)


def _gaps(times: Sequence[float], until: float) -> list[float]:
    """Those that end after the arrival and begin before its first token."""
    return [b - a for a, b in pairwise(times) if b > ARRIVES and a < until]
