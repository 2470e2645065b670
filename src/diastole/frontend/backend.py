"""Backend: a running engine with the text services on it. What the HTTP server and the async API stand on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diastole.assets import resolve
from diastole.config import Config
from diastole.engine.trace import View
from diastole.frontend import wire
from diastole.frontend.assembly import service_name
from diastole.frontend.link import Link, Process
from diastole.frontend.supervisor import Supervisor
from diastole.frontend.textservice import TextService
from diastole.frontend.voice import Voice, voice_of
from diastole.types import UserError


class Backend:
    """Starts an engine, keeps one running, and knows its services by name and alias.

    Args:
        connect: makes a link to a new engine; None: each in a process of its own.
    """

    def __init__(self, config: Config, connect: Callable[[], Link] | None = None) -> None:
        self.config = config
        self.services: dict[str, TextService] = {}
        self.kernels = ""
        self._voices: list[Voice] = []
        self._cards: dict[str, wire.Card] = {}
        timeout = config.server.engine_timeout_seconds
        self._engine = Supervisor(connect or partial(Process, config), timeout, self._learn)

    async def start(self) -> None:
        """Load the models. The text side is read here while the engine loads its weights.

        Raises:
            UserError: a setting or a model file is wrong.
        """
        paths = {k: resolve(s.model) for k, s in self.config.service.items()}
        voices = asyncio.gather(*(asyncio.to_thread(_warm_voice, p) for p in paths.values()))
        try:
            await self._engine.start()
        finally:
            self._voices = loaded = await voices
        for (key, config), voice in zip(self.config.service.items(), loaded, strict=True):
            card = self._cards[service_name(key, config)]
            service = TextService(card, voice, self._engine, config, int(time.time()), Path(paths[key]))
            for name in (service.name, *config.aliases):
                if name in self.services:
                    raise UserError(f"two services are called {name!r}: names and aliases must differ", param="name")
                self.services[name] = service

    def _learn(self, ready: wire.Ready) -> None:
        """What a new engine says of itself: its room for pages depends on the memory that it found."""
        self.kernels = ready.kernels
        self._cards = {c.name: c for c in ready.cards}
        for service in self.services.values():
            service.card = self._cards[service.name]

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
        return bool(self.services) and not self._engine.given_up

    def ready(self) -> bool:
        """Whether an engine serves now."""
        return bool(self.services) and self._engine.client.alive

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
