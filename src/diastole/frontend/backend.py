"""Backend: a running engine with the text services on it. What the HTTP server and the async API stand on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from diastole.assets import resolve
from diastole.config import Config, changed, to_toml
from diastole.engine.trace import View
from diastole.frontend import wire
from diastole.frontend.assembly import service_name, writes
from diastole.frontend.link import Link, Process
from diastole.frontend.liveservice import LiveService
from diastole.frontend.pictureservice import PictureService
from diastole.frontend.supervisor import Supervisor
from diastole.frontend.textservice import TextService
from diastole.frontend.voice import Voice, voice_of
from diastole.types import UserError

# Settings that the server side was built on, or that are the whole process's.
RESTART = frozenset({"model", "name", "aliases", "kernels"})


class Backend:
    """Starts an engine, keeps one running, and knows its services by name and alias.

    Args:
        connect: makes a link to a new engine; each has a process of its own if it is not told otherwise.
    """

    def __init__(self, config: Config, connect: Callable[[Config], Link] = Process) -> None:
        self.config = config  # a reload changes it
        self.services: dict[str, TextService] = {}
        self.live: dict[str, LiveService] = {}
        self.pictures: dict[str, PictureService] = {}
        self.kernels = ""
        self._voices: list[Voice] = []
        self._cards: dict[str, wire.AnyCard] = {}
        timeout = config.server.engine_timeout_seconds
        self._engine = Supervisor(lambda: connect(self.config), timeout, self._learn)
        self._reloading: set[str] = set()

    async def start(self) -> None:
        """Load the models. The text side is read here while the engine loads its weights.

        Raises:
            UserError: a setting or a model file is wrong.
        """
        paths = {k: resolve(s.model) for k, s in self.config.service.items()}
        texts = {k: p for k, p in paths.items() if writes(p)}
        voices = asyncio.gather(*(asyncio.to_thread(_warm_voice, p) for p in texts.values()))
        try:
            await self._engine.start()
        finally:
            self._voices = loaded = await voices
        speakers = dict(zip(texts, loaded, strict=True))
        for key, config in self.config.service.items():
            card = self._cards[service_name(key, config)]
            service: TextService | LiveService | PictureService
            if isinstance(card, wire.LiveCard):
                service = LiveService(card, self._engine, config, int(time.time()))
            elif isinstance(card, wire.PictureCard):
                service = PictureService(card, self._engine, config, int(time.time()))
            else:
                service = TextService(card, speakers[key], self._engine, config, int(time.time()), Path(paths[key]))
            for name in (service.name, *config.aliases):
                if any(name in known for known in (self.services, self.live, self.pictures)):
                    raise UserError(f"two services are called {name!r}: names and aliases must differ", param="name")
                if isinstance(service, LiveService):
                    self.live[name] = service
                elif isinstance(service, PictureService):
                    self.pictures[name] = service
                else:
                    self.services[name] = service

    def _learn(self, ready: wire.Ready) -> None:
        """What a new engine says of itself: its room for pages depends on the memory that it found."""
        self.kernels = ready.kernels
        self._cards = {c.name: c for c in ready.cards}
        for text in self.services.values():
            text.card = wire.of_texts(self._cards[text.name])
        for live in self.live.values():
            live.card = cast(wire.LiveCard, self._cards[live.name])
        for pictures in self.pictures.values():
            pictures.card = cast(wire.PictureCard, self._cards[pictures.name])

    async def reload(self, name: str, changes: Mapping[str, Any]) -> None:
        """Load a service anew, with other settings if some are given. It serves until the new one takes over; then it
        finishes what it runs. If that fails, it goes on.

        Args:
            name: of a service that exists.
            changes: settings of ``ServiceConfig`` by name.

        Raises:
            UserError: a setting is wrong or takes a restart, the model cannot be loaded, or is being loaded already.
            EngineLost: the engine ended meanwhile.
        """
        service: Any = next(known[name] for known in (self.services, self.live, self.pictures) if name in known)
        if taken := sorted(RESTART & changes.keys()):
            raise UserError(f"{taken[0]} cannot be changed by a reload: restart the server", param=taken[0])
        if service.name in self._reloading:
            raise UserError(f"{service.name} is being reloaded already", code="reload_running")
        key = next(k for k, s in self.config.service.items() if service_name(k, s) == service.name)
        wanted = {"service": {key: dict(changes)}}
        config = changed(self.config, wanted)
        self._reloading.add(service.name)
        try:
            command = wire.Reload(service.name, to_toml(config), service.card)
            service.card = await self._engine.client.reload(command)
        finally:
            self._reloading.remove(service.name)
        self.config = changed(self.config, wanted)  # which another reload may have changed meanwhile

    async def stop(self, drain_seconds: float) -> None:
        """Let running requests end for so long, then abort them, then end the engine."""
        deadline = time.monotonic() + drain_seconds
        while len(self._engine.client) and self._engine.client.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self._engine.stop()
        for voice in self._voices:
            voice.close()

    def alive(self) -> bool:
        """Whether there is an engine, or will be: false before the first and once restarts were given up."""
        return bool(self.services or self.live or self.pictures) and not self._engine.given_up

    def ready(self) -> bool:
        """Whether an engine serves now."""
        return bool(self.services or self.live or self.pictures) and self._engine.client.alive

    @property
    def processes(self) -> Sequence[int]:
        """Ids of processes that work for this one."""
        return self._engine.client.processes

    @property
    def restarts(self) -> int:
        """Engines that were started because the one before had ended."""
        return self._engine.restarts

    async def stats(self) -> Mapping[str, Any]:
        """Snapshots of the meters by service."""
        return await self._engine.client.stats()

    async def trace(self, since: int) -> View:
        """What the engine holds now, and what it did after step ``since``."""
        return await self._engine.client.trace(since)


def _warm_voice(path: Path) -> Voice:
    """The text side of a model, ready to speak: done while the engine loads its weights, so it costs no time."""
    voice = voice_of(path)
    voice.warm()
    return voice
