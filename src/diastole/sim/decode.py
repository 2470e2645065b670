"""A decode instance: pulls caches when it wants to and gives the rest of the tokens (DistServe, sections 4.3 and 5).

When memory runs out, the youngest stream's cache goes to the host's memory; it comes back before anything is pulled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from diastole.sim.blocks import BLOCK, Room, whole
from diastole.sim.decoding import Residents, Step
from diastole.sim.events import Agenda, Stages, Work
from diastole.sim.latency import Latency
from diastole.sim.life import Life, Limits, Link


class DecodeInstance:
    """
    Args:
        tokens: that its memory has room for.
        link: what caches come over; one at a time.
        more: is called when it may accept more than before.
    """

    def __init__(
        self, agenda: Agenda, latency: Latency, tokens: int, limits: Limits, link: Link, more: Callable[[], None]
    ) -> None:
        self.agenda, self.latency, self.limits, self.link, self.more = agenda, latency, limits, link, more
        self.room = Room(tokens)
        self.stages = Stages(agenda, latency.stages, self._form)
        self.residents = Residents(self.room, limits, latency.stages, self._swap_out)
        self.swapped: deque[Life] = deque()
        self.load = 0  # requests that are pulled, wait or run
        self.swaps = 0
        self._coming: dict[int, int] = {}  # room of those pulled that have been in no step yet, by identity
        self._link_free = 0.0  # seconds

    def accepts(self, life: Life) -> bool:
        """Little waits here already and there is room for its prompt. An empty instance accepts whatever fits: else two
        could wait for each other for ever."""
        if whole(life.asked.prompt) > self.room.free or self.swapped:
            return False
        return not self.load or sum(self._coming.values()) < self.limits.waiting * self.room.total

    def pull(self, life: Life, freed: Callable[[], None]) -> None:
        """Fetch its cache; ``freed`` is told when the source may forget it."""
        life.context, life.held = life.asked.prompt, whole(life.asked.prompt)
        self.room.take(life.held)
        self.load += 1
        self._coming[id(life)] = life.held
        begin = max(self.agenda.now, self._link_free)
        self._link_free = begin + self.link.seconds(life.context)
        self.agenda.at(self._link_free, partial(self._landed, life, freed))

    def _landed(self, life: Life, freed: Callable[[], None]) -> None:
        self.residents.ready.append(life)
        self.stages.wake()
        freed()

    def _form(self) -> Work | None:
        self._swap_in()
        step = self.residents.step()
        if not step.lives:
            return None
        waited = len(self._coming)
        for life in step.lives:
            self._coming.pop(id(life), None)
        if len(self._coming) < waited:
            self.more()
        return Work(self.latency.of_step(step.context, len(step.lives)), partial(self._done, step))

    def _done(self, step: Step) -> None:
        over = self.residents.done(step, self.agenda.now)
        self.load -= len(over)
        if over:
            self.more()

    # ---- the host's memory

    def _swap_out(self, life: Life) -> None:
        self.swaps += 1
        self._coming.pop(id(life), None)
        self.swapped.appendleft(life)  # of those that leave, the oldest comes back first

    def _swap_in(self) -> None:
        """Those who left, while there is room for them and another token of everybody who is here."""
        while self.swapped:
            life = self.swapped[0]
            need = whole(life.context + 1)
            if need + BLOCK * len(self.residents) > self.room.free:  # where nobody is, all of it is free
                return
            self.swapped.popleft()
            life.held = need
            self.room.take(need)
            self.agenda.at(self.agenda.now + self.link.swap(life.context), partial(self._back, life))

    def _back(self, life: Life) -> None:
        self.residents.ready.append(life)
        self.stages.wake()
        self.more()
