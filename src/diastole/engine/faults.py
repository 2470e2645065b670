"""Faults: a step that raises costs the request that made it raise, and nobody else.

Until its commit a step changes nothing that is not done again: it grows leases and writes rows that their streams have
not absorbed yet. So the grants of a step that raised are run again one by one, and who raises alone is to blame. If
nobody can be run, not the requests are at fault but the engine, and the error goes up: whoever runs it replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from diastole.engine.service import Service
from diastole.engine.trace import shown_id
from diastole.types import Ended, Event, Grant, Stream

log = logging.getLogger("diastole.engine")

MOST_ALONE = 8  # requests that fail in a row, each as the only one of its step, before the fault is the engine's


class Ran(NamedTuple):
    """What came of running some grants."""

    events: list[Event]
    starved: Sequence[Stream] = ()  # for which there was no room
    well: int = 0  # streams that ran as they should
    failed: Sequence[tuple[Stream, Exception]] = ()


class Blame:
    """Finds those at fault and ends their requests."""

    def __init__(self) -> None:
        self._alone: dict[str, tuple[int, int]] = {}  # by service: its good steps then, and how many failed since

    def one_by_one(
        self, service: Service, grants: Sequence[Grant], run: Callable[[Sequence[Grant]], Ran], error: Exception
    ) -> Ran:
        """Run the grants of a step that raised ``error`` before its commit again, each alone."""
        if not service.loop.repeatable:
            return Ran([], failed=[(stream, error) for stream, _ in grants])
        well = 0
        events: list[Event] = []
        starved: list[Stream] = []
        failed: list[tuple[Stream, Exception]] = []
        for grant in grants:
            try:
                ran = run([grant])
            except Exception as e:
                failed.append((grant.stream, e))
            else:
                events += ran.events
                starved += ran.starved
                well += ran.well
                failed += ran.failed
        return Ran(events, starved, well, failed)

    def end(self, service: Service, ran: Ran, now: float) -> list[Event]:
        """End the requests of streams that failed; their last events.

        Raises:
            Exception: the first of the errors, if the fault is the engine's.
        """
        for _, error in ran.failed:
            if isinstance(error, MemoryError | ConnectionError):  # of the machine, or a part of the model is gone
                raise error
        ids = {stream.req.id for stream, _ in ran.failed}
        if not ran.well:
            self._suspect(service, len(ids), ran.failed[0][1])
        events: list[Event] = []
        for stream, error in ran.failed:
            id = stream.req.id
            if id in ids:  # of several choices the first tells it
                ids.remove(id)
                log.error("request %s made a step fail and is ended", shown_id(id), exc_info=error)
                events += service.ledger.end(id, now, Ended("error"))
        return events

    def _suspect(self, service: Service, requests: int, error: Exception) -> None:
        """A step ran well for nobody. One request alone may be to blame for that, but not one after the other."""
        steps = service.meter.counters["steps"]
        before, alone = self._alone.get(service.name, (steps, 0))
        alone = alone + 1 if before == steps else 1
        self._alone[service.name] = steps, alone
        if requests > 1 or alone > MOST_ALONE:
            raise error
