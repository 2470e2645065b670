"""Profile: what steps of a language model cost on this machine, measured before anybody waits for one.

A controller of drafts has to know what one more row costs before it has seen a step with it. Made-up rows over pages
that nobody holds yet are as good as any: only time is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diastole.clock import Clock
from diastole.engine.service import Service
from diastole.state.pages import PAGE, PagePool
from diastole.types import Batch, Grant, Request, Stream

Case = tuple[int, int, tuple[int, ...]]  # streams, tokens that each has absorbed, rows of each

# What drafts cost: about a second in all for a small model.
CASES: tuple[Case, ...] = (
    (1, 64, (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)),
    (1, 512, (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)),
    (4, 512, (1, 2, 4, 8)),
    (16, 512, (1, 2)),
)
# What slices of prompts cost.
SLICES: tuple[Case, ...] = (
    (1, 0, (32, 64, 128, 256, 512)),
    (1, 1024, (32, 128, 512)),
    (8, 512, (1,)),
    (32, 512, (1,)),
)
TIMES = 5


def most_rows(cases: Sequence[Case]) -> int:
    """Of any step of these."""
    return max(streams * max(sizes) for streams, _, sizes in cases)


def profile(
    service: Service, pool: PagePool, clock: Clock, context: int, most: int, cases: Sequence[Case] = CASES
) -> None:
    """Teach a service's cost model. Nobody may hold pages yet.

    Args:
        context: tokens that a stream may have.
        most: streams that may run at once.
        cases: what is measured, as far as there is room.
    """
    request = Request("profile", service.name, (), None)
    for streams, units, sizes in cases:
        if streams > most or streams * _pages(units, max(sizes)) > pool.pages or units + max(sizes) > context:
            continue
        took = seconds(service, clock, streams, units, sizes, TIMES)
        for nth in range(TIMES):
            for rows in sizes:
                grants = [Grant(Stream(request, 0, units + rows, done=units), rows)] * streams
                service.cost.learn(grants, took[rows][nth])


def seconds(
    service: Service, clock: Clock, streams: int, units: int, sizes: Sequence[int], times: int
) -> dict[int, list[float]]:
    """By rows of each of ``streams`` streams that have absorbed ``units``, what forward passes take. All sizes take
    turns, so that a slow moment is not one size's alone. Nobody may hold pages."""
    batches = {rows: _batch(streams, units, rows, _pages(units, rows)) for rows in sizes}
    took: dict[int, list[float]] = {rows: [] for rows in sizes}
    for nth in range(times + 1):
        for rows, batch in batches.items():
            began = clock.now()
            service.model.forward(batch, service.state)
            if nth:  # the first touches everything
                took[rows].append(clock.now() - began)
    return took


def _pages(units: int, rows: int) -> int:
    return -(-(units + rows) // PAGE)


def _batch(streams: int, units: int, rows: int, each: int) -> Batch:
    """``rows`` rows of each of ``streams`` streams that have absorbed ``units``, on ``each`` pages of its own."""
    tables = np.arange(streams * each, dtype=np.int32).reshape(streams, each)
    pos = np.tile(np.arange(units, units + rows, dtype=np.int32), streams)
    owner = np.repeat(np.arange(streams), rows)
    return Batch(
        grants=(),
        leases=(),
        inputs=np.zeros(len(pos), np.int32),
        pos=pos,
        starts=np.arange(0, len(pos) + 1, rows, dtype=np.int32),
        rows=PagePool.rows(tables, owner, pos),
        tables=tables,
        lo=np.zeros(len(pos), np.int32),
        hi=pos + 1,
        want=np.arange(len(pos), dtype=np.int32),
    )
