"""What decode steps share, wherever they run: who is in one, growing caches, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diastole.sim.blocks import BLOCK, Room
from diastole.sim.life import Life, Limits


class Step(NamedTuple):
    """Streams that decode together."""

    lives: list[Life]
    context: int  # tokens that they see


class Residents:
    """Streams whose caches are on an instance, oldest first; those of a batch that is under way are not ``ready``.

    Args:
        stages: of the instance's pipeline: so many steps share the streams, one for each.
        evict: is told of a stream whose cache was taken away because an older one needed room, the youngest first.
    """

    def __init__(self, room: Room, limits: Limits, stages: int, evict: Callable[[Life], None]) -> None:
        self.room, self.limits, self.stages, self.evict = room, limits, stages, evict
        self.ready: list[Life] = []
        self.under_way = 0

    def __len__(self) -> int:
        return len(self.ready) + self.under_way

    def step(self) -> Step:
        """The next; its streams are under way until ``done``. Empty: nobody is ready, or nobody finds room."""
        most = min(self.limits.streams, -(-len(self) // self.stages))
        step = self._all(most) or self._some(most)
        del self.ready[: len(step.lives)]
        self.under_way += len(step.lives)
        return step

    def _all(self, most: int) -> Step | None:
        """As many as may, where everybody finds room: the usual case, and ``_some`` would find the same."""
        chosen = self.ready[:most]
        context = sum([life.context for life in chosen]) + len(chosen)
        growing = [life for life in chosen if life.context == life.held]
        if context > self.limits.context or len(growing) * BLOCK > self.room.free:
            return None
        self.room.take(len(growing) * BLOCK)
        for life in growing:
            life.held += BLOCK
        return Step(chosen, context)

    def _some(self, most: int) -> Step:
        """One after the other, at the cost of the youngest."""
        chosen: list[Life] = []
        context = 0
        while len(chosen) < min(most, len(self.ready)):
            life = self.ready[len(chosen)]
            seen = life.context + 1
            if (chosen and context + seen > self.limits.context) or not self._grow(life, len(chosen)):
                break
            chosen.append(life)
            context += seen
        return Step(chosen, context)

    def _grow(self, life: Life, chosen: int) -> bool:
        """Room for another token, at the cost of the youngest that are ready and behind it."""
        if life.context < life.held:
            return True
        while self.room.free < BLOCK and len(self.ready) > chosen + 1:
            victim = self.ready.pop()
            self.room.give(victim.held)
            victim.held = 0
            self.evict(victim)
        if self.room.free < BLOCK:
            return False
        self.room.take(BLOCK)
        life.held += BLOCK
        return True

    def done(self, step: Step, now: float) -> list[Life]:
        """A step has ended: every stream has one more token. Gives those that have all."""
        self.under_way -= len(step.lives)
        for life in step.lives:
            life.times.append(now)
            life.context += 1
            life.left -= 1
        over = [life for life in step.lives if not life.left]
        self.ready[:0] = [life for life in step.lives if life.left] if over else step.lives
        for life in over:
            self.room.give(life.held)
            life.held = 0
        return over
