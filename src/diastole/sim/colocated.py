"""Instances that do both: prompts before everything else, as vLLM did, or in pieces beside decoding, as Sarathi-Serve.

When memory runs out, the youngest stream's cache is forgotten and computed again, with what it has said, before others
are let in.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from diastole.sim.blocks import BLOCK, Room, whole
from diastole.sim.decoding import Residents, Step
from diastole.sim.events import Agenda, Stages, Work
from diastole.sim.latency import Chunk, Latency
from diastole.sim.life import Life, Limits


class PrefillFirst:
    """Waiting prompts run whole, as many as fit; streams decode when none waits.

    Args:
        tokens: that its memory has room for.
    """

    name = "prefill first"

    def __init__(self, agenda: Agenda, latency: Latency, tokens: int, limits: Limits) -> None:
        self.agenda, self.latency, self.limits = agenda, latency, limits
        self.room = Room(tokens)
        self.stages = Stages(agenda, latency.stages, self._form)
        self.residents = Residents(self.room, limits, latency.stages, self._forget)
        self.queue: deque[Life] = deque()
        self.running = 0  # in batches of prompts
        self.preempted = 0

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.queue) + self.running + len(self.residents)

    def add(self, life: Life) -> None:
        self.queue.append(life)
        self.stages.wake()

    def _form(self) -> Work | None:
        return self._prompts() or self._decode()

    def _prompts(self) -> Work | None:
        batch: list[Life] = []
        lengths: list[int] = []
        while self.queue and len(batch) < self.limits.prompts:
            life = self.queue[0]
            if (batch and sum(lengths) + life.known > self.limits.prompt_tokens) or not self._fits(life):
                break
            batch.append(self.queue.popleft())
            lengths.append(life.known)
        if not batch:
            return None
        self.running += len(batch)
        return Work(self.latency.of_prompts(lengths), partial(self._prefilled, batch))

    def _fits(self, life: Life) -> bool:
        """Take room for all it knows, and leave some for another token of everybody who is here."""
        need = whole(life.known)
        spare = BLOCK * (len(self.residents) + self.running)
        if need + (spare if self.room.free < self.room.total else 0) > self.room.free:
            return False
        self.room.take(need)
        life.held = need
        return True

    def _prefilled(self, batch: list[Life]) -> None:
        self.running -= len(batch)
        for life in batch:
            life.context = life.known
            life.emit(self.agenda.now)
            if not life.left:
                self.room.give(life.held)
                life.held = 0
            else:
                self.residents.ready.append(life)

    def _decode(self) -> Work | None:
        step = self.residents.step()
        if not step.lives:
            return None
        return Work(self.latency.of_step(step.context, len(step.lives)), partial(self._decoded, step))

    def _decoded(self, step: Step) -> None:
        self.residents.done(step, self.agenda.now)

    def _forget(self, life: Life) -> None:
        self.preempted += 1
        life.absorbed = life.context = 0
        begun = (
            bool(self.queue) and self.queue[0].absorbed > 0
        )  # holds its room: whoever came before it would wait for it
        self.queue.insert(int(begun), life)


class Chunked(PrefillFirst):
    """All streams decode in every step, and pieces of prompts fill it up to a number of tokens."""

    name = "chunked"

    def _form(self) -> Work | None:
        step = self.residents.step()
        room = self.limits.chunk - len(step.lives)
        chunks: list[Chunk] = []
        ended: list[Life] = []
        while self.queue and room > 0:
            life = self.queue[0]
            if not life.absorbed and not self._fits(life):
                break
            n = min(life.known - life.absorbed, room)
            chunks.append(Chunk(life.absorbed, n))
            life.absorbed += n
            room -= n
            if life.absorbed == life.known:
                self.running += 1
                ended.append(self.queue.popleft())
        if not chunks and not step.lives:
            return None
        takes = self.latency.of_mix(chunks, step.context, len(step.lives))
        return Work(takes, partial(self._mixed, step, ended))

    def _mixed(self, step: Step, ended: list[Life]) -> None:
        self.residents.done(step, self.agenda.now)
        self._prefilled(ended)
