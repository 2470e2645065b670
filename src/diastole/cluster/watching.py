"""Watching several engines as if they were one (``engine.trace.View``): each service is shown once per engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from diastole.engine.trace import ServiceView, Step, StreamView, View

WATCHED = 64  # answers that may still be asked on from


class Watching:
    """Engines number their steps each for themselves, watchers ask on from one number: which step of which engine an
    answer went to is kept, for the last answers.

    Args:
        names: of the engines.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._reached: dict[int, Mapping[str, int]] = {}  # by answer: the last step of each engine
        self._answers = 0

    def since(self, last: int) -> Mapping[str, int]:
        """The last step of each engine that is known to who asks on from ``last``; an engine that was started anew
        begins at 0 again, and is asked for too little once."""
        return self._reached.get(last, {})

    def merged(self, views: Mapping[str, View], known: Mapping[str, int]) -> View:
        """One view of those that answered, by name, to who knew of these steps. Times are on the clock of the first;
        steps have numbers that no other engine gives."""
        if not views:
            return View(0.0, 0, [], {})
        now = next(iter(views.values())).now
        steps: list[Step] = []
        services: dict[str, ServiceView] = {}
        for name, view in views.items():
            steps += [self._step(s, name, now - view.now) for s in view.steps]
            for service, one in view.services.items():
                streams = [_later(s, now - view.now) for s in one.streams]
                services[_at(service, name)] = replace(one, streams=streams)
        self._answers += 1
        self._reached[self._answers] = {**known, **{name: view.last for name, view in views.items()}}
        if len(self._reached) > WATCHED:
            del self._reached[next(iter(self._reached))]
        return View(now, self._answers, sorted(steps, key=lambda s: (s.began, s.seq)), services)

    def _step(self, step: Step, name: str, later: float) -> Step:
        seq = step.seq * len(self._names) + self._names.index(name)
        return replace(step, seq=seq, began=step.began + later, service=_at(step.service, name))


def _later(stream: StreamView, later: float) -> StreamView:
    first = None if stream.first is None else stream.first + later
    return replace(stream, arrived=stream.arrived + later, first=first, due=stream.due + later)


def _at(service: str, engine: str) -> str:
    return f"{service} ({engine})"
