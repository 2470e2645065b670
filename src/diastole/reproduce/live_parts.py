"""What studies of models of live input have in common."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.bench.streaming import NAME, serving
from diastole.live import Chunk, LiveModel, LiveParams
from diastole.reproduce.must import at_least, equal_to
from diastole.reproduce.study import Study
from diastole.types import Array, Request


@dataclass(frozen=True, slots=True)
class Carried:
    """Many streams on the threads that the model has."""

    streams: int
    period: float  # seconds of input of each round
    took: Array  # (rounds,) seconds of a round of all of them
    ran: Array  # (rounds,) seconds of them in which this process had a core
    state: int  # bytes of a stream's cell

    @property
    def at_real_time(self) -> float:
        """Streams that could be carried at most, by the median."""
        return self.streams * self.period / float(np.median(self.took))


def carry(model: LiveModel, streams: int, rounds: int, options: Mapping[str, Any] | None = None) -> Carried:
    """Give so many streams a chunk each, round after round; the rounds in which windows fill do not count."""
    engine, service = serving(model, streams)
    params = LiveParams(options or {})
    for i in range(streams):
        engine.add(Request(f"s{i}", NAME, None, params))
    signal = model.signal
    chunk = model.chunk(model.options(params.options)) * signal.hop
    piece = 0.1 * np.random.default_rng(3).normal(size=(chunk, len(signal.channels))).astype(np.float32)
    warm = -(-signal.window // chunk) + 1
    took = []
    with _loaded_stays():
        for nth in range(warm + rounds):
            for i in range(streams):
                engine.feed(f"s{i}", Chunk(piece))
            began, ran = time.perf_counter(), time.process_time()
            while engine.step():
                pass
            if nth >= warm:
                took.append((time.perf_counter() - began, time.process_time() - ran))
    arrays = service.ledger.pools["cell"].arrays  # type: ignore[attr-defined]
    wall, own = np.array(took).T
    return Carried(streams, chunk / signal.rate, wall, own, sum(a[0].nbytes for a in arrays.values()))


@contextmanager
def _loaded_stays() -> Iterator[None]:
    """Or the collector would walk over all that a study has loaded: 90 ms with torch, 5 in an engine's process."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def check_carried(study: Study, found: Carried, what: str) -> None:
    """So many streams are carried by one core, none of them late."""
    study.check(f"{what} on one core at real time", found.at_real_time, at_least(found.streams))
    late = found.took > found.period
    study.check(
        f"rounds of {found.streams} of them that took longer than their {found.period:g} s",
        int(late.sum()),
        equal_to(0),
        why=_kept_from(found) if late.any() else "",
    )
    study.note(f"{found.state / 1000:.0f} kB of state for each of {what}, whatever its length")


def _kept_from(found: Carried) -> str:
    """Whether it was the machine: of the slowest round, how much of its time this process ran."""
    slowest = int(found.took.argmax())
    took, ran = 1000 * found.took[slowest], 1000 * found.ran[slowest]
    usual = 1000 * float(np.median(found.took))
    return f"the slowest took {took:.0f} ms, in {ran:.0f} of which this process had a core; {usual:.0f} ms is usual"
