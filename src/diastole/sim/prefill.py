"""A prefill instance: batches prompts in order of arrival, gives each its first token, and keeps its cache until that
has been pulled (DistServe, sections 4.3 and 5). What nobody has pulled holds up the next prompts: back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from diastole.sim.blocks import Room, whole
from diastole.sim.events import Agenda, Stages, Work
from diastole.sim.latency import Latency
from diastole.sim.life import Life, Limits


class PrefillInstance:
    """
    Args:
        tokens: that its memory has room for.
        first: is told of every request that got its first token; ``release`` must be called for it once.
    """

    def __init__(
        self,
        agenda: Agenda,
        latency: Latency,
        tokens: int,
        limits: Limits,
        first: Callable[[PrefillInstance, Life], None],
    ) -> None:
        self.agenda, self.latency, self.limits, self.first = agenda, latency, limits, first
        self.room = Room(tokens)
        self.stages = Stages(agenda, latency.stages, self._form)
        self.queue: deque[Life] = deque()
        self.running = 0

    @property
    def load(self) -> int:
        """Requests that wait or run: the shortest is dispatched to."""
        return len(self.queue) + self.running

    def add(self, life: Life) -> None:
        self.queue.append(life)
        self.stages.wake()

    def release(self, life: Life) -> None:
        """Its cache is somewhere else now, or not needed."""
        self.room.give(whole(life.asked.prompt))
        self.stages.wake()

    def _form(self) -> Work | None:
        batch: list[Life] = []
        need = tokens = 0
        most = min(self.limits.saturation, self.limits.prompt_tokens)
        while self.queue and len(batch) < self.limits.prompts:
            prompt = self.queue[0].asked.prompt
            if (batch and tokens + prompt > most) or need + whole(prompt) > self.room.free:
                break
            batch.append(self.queue.popleft())
            tokens += prompt
            need += whole(prompt)
        if not batch:
            return None
        self.room.take(need)
        self.running += len(batch)
        return Work(self.latency.of_prompts([x.asked.prompt for x in batch]), partial(self._done, batch))

    def _done(self, batch: list[Life]) -> None:
        self.running -= len(batch)
        for life in batch:
            life.emit(self.agenda.now)
            self.first(self, life)
