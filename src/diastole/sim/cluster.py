"""Clusters: a load goes through simulated instances, in discrete events.

    disaggregated   arrival → prefill instance with the shortest queue → first token → bridge
                    → the least loaded decode instance that accepts it pulls its cache → the rest of the tokens
    colocated       arrival → instance with the shortest queue → all tokens

Everything here is simulated: nothing is run, and times are what ``Latency`` says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from diastole.sim.blocks import Room, whole
from diastole.sim.colocated import PrefillFirst
from diastole.sim.decode import DecodeInstance
from diastole.sim.events import Agenda
from diastole.sim.latency import Latency
from diastole.sim.life import Life, Limits, Link
from diastole.sim.prefill import PrefillInstance
from diastole.sim.timeline import Arrival, Timeline
from diastole.types import UserError

USUAL = Limits()


@dataclass(frozen=True, slots=True)
class Group:
    """Instances of one kind that are all alike."""

    count: int
    latency: Latency
    tokens: int  # that the memory of each has room for
    limits: Limits = USUAL


class System(Protocol):
    """What serves a load."""

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        """The timelines of all its requests, in the order of the load.

        Raises:
            UserError: a request can never be served.
        """
        ...


@dataclass(frozen=True, slots=True)
class Disaggregated:
    """Prefill and decode on different instances."""

    prefill: Group
    decode: Group
    link: Link

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        _check(load, self.prefill, "prefill", outputs=False)
        _check(load, self.decode, "decode", outputs=True)
        return _Split(self).run(load)


@dataclass(frozen=True, slots=True)
class Colocated:
    """Both on every instance.

    Args:
        kind: ``PrefillFirst`` or ``Chunked``.
    """

    group: Group
    kind: type[PrefillFirst]

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        _check(load, self.group, "an instance", outputs=True)
        agenda, g = Agenda(), self.group
        instances = [self.kind(agenda, g.latency, g.tokens, g.limits) for _ in range(g.count)]
        lives = [Life(a, a.output) for a in load]
        for life in lives:
            agenda.at(life.asked.at, partial(_dispatch, instances, life))
        agenda.run()
        return _told(lives, [x.room for x in instances])


@dataclass(frozen=True, slots=True)
class PrefillAlone:
    """Only prompts, up to their first token: for the search that judges phases one by one."""

    group: Group

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        alone = [a._replace(output=1) for a in load]
        nobody = Group(0, self.group.latency, 0)
        _check(alone, self.group, "prefill", outputs=False)
        return _Split(Disaggregated(self.group, nobody, Link(1.0, 0.0))).run(alone)


@dataclass(frozen=True, slots=True)
class DecodeAlone:
    """Only what comes behind the first token, which everybody has on arrival."""

    group: Group
    link: Link

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        _check(load, self.group, "decode", outputs=True)
        nobody = Group(0, self.group.latency, 0)
        return _Split(Disaggregated(nobody, self.group, self.link)).run(load)


class _Split:
    """One run of separated phases."""

    def __init__(self, system: Disaggregated) -> None:
        self.agenda = Agenda()
        p, d = system.prefill, system.decode
        self.prefills = [
            PrefillInstance(self.agenda, p.latency, p.tokens, p.limits, self._first) for _ in range(p.count)
        ]
        self.decodes = [
            DecodeInstance(self.agenda, d.latency, d.tokens, d.limits, system.link, self._serve) for _ in range(d.count)
        ]
        self.bridge: deque[tuple[PrefillInstance | None, Life]] = deque()

    def run(self, load: Sequence[Arrival]) -> list[Timeline]:
        lives = [Life(a, a.output) for a in load]
        for life in lives:
            self.agenda.at(life.asked.at, partial(self._arrive, life))
        self.agenda.run()
        rooms = [*(x.room for x in self.prefills), *(x.room for x in self.decodes)]
        return _told(lives, rooms)

    def _arrive(self, life: Life) -> None:
        if self.prefills:
            _dispatch(self.prefills, life)
            return
        life.emit(self.agenda.now)
        self._pass(None, life)

    def _first(self, source: PrefillInstance, life: Life) -> None:
        if not life.left:
            source.release(life)
        else:
            self._pass(source, life)

    def _pass(self, source: PrefillInstance | None, life: Life) -> None:
        if life.left:
            self.bridge.append((source, life))
            self._serve()

    def _serve(self) -> None:
        """Let the least loaded decode instance that accepts it pull who has waited longest, as often as one does."""
        while self.bridge:
            source, life = self.bridge[0]
            able = [x for x in self.decodes if x.accepts(life)]
            if not able:
                return
            self.bridge.popleft()
            freed = _nothing if source is None else partial(source.release, life)
            min(able, key=lambda x: x.load).pull(life, freed)


class _Queued(Protocol):
    """An instance that requests can be sent to."""

    @property
    def load(self) -> int: ...

    def add(self, life: Life) -> None: ...


def _dispatch(instances: Sequence[_Queued], life: Life) -> None:
    """To whoever has fewest requests; of equals the first."""
    min(instances, key=lambda x: x.load).add(life)


def _nothing() -> None:
    """Nobody holds anything."""


def _told(lives: Sequence[Life], rooms: Sequence[Room]) -> list[Timeline]:
    """What came of them; every token of everybody, and nothing is left behind."""
    held = [room.total - room.free for room in rooms]
    unfinished = sum(life.left > 0 for life in lives)
    if unfinished or any(held):
        raise RuntimeError(f"the simulation ended with {unfinished} requests unfinished and room held: {held}")
    return [Timeline(life.asked.at, life.times) for life in lives]


def _check(load: Sequence[Arrival], group: Group, what: str, outputs: bool) -> None:
    """Raises:
    UserError: some request never has room, has no tokens, or the load is not in order.
    """
    for before, a in zip([Arrival(0.0, 1, 1), *load], load, strict=False):
        if a.prompt < 1 or a.output < 1 or not before.at <= a.at < float("inf"):
            message = f"a load must be in order of arrival, with a token in and out at least; this is not: {tuple(a)}"
            raise UserError(message, param="load")
    longest = max((a.prompt + a.output * outputs for a in load), default=0)
    if whole(longest) > Room(group.tokens).total:
        message = f"{what} has memory for {group.tokens:,} tokens, and the longest request has {longest:,}"
        raise UserError(message, param="lengths", code="too_long")
