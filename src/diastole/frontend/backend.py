"""Backend: a running engine with the text services on it. What the HTTP server and the async API stand on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diastole.assets import resolve
from diastole.config import Config
from diastole.frontend.assembly import service_name
from diastole.frontend.client import EngineClient
from diastole.frontend.link import Link, Process
from diastole.frontend.textservice import TextService
from diastole.frontend.voice import Voice, voice_of
from diastole.types import UserError


class Backend:
    """Starts an engine and knows its services by name and alias."""

    def __init__(self, config: Config, link: Link | None = None) -> None:
        self.config = config
        self.services: dict[str, TextService] = {}
        self.kernels = ""
        self._voices: list[Voice] = []
        self._client = EngineClient(link or Process(config))

    async def start(self) -> None:
        """Load the models. The text side is read here while the engine loads its weights.

        Raises:
            UserError: a setting or a model file is wrong.
        """
        paths = {k: resolve(s.model) for k, s in self.config.service.items()}
        voices = asyncio.gather(*(asyncio.to_thread(_warm_voice, p) for p in paths.values()))
        try:
            ready = await self._client.start()
        finally:
            self._voices = loaded = await voices
        self.kernels = ready.kernels
        cards = {c.name: c for c in ready.cards}
        for (key, config), voice in zip(self.config.service.items(), loaded, strict=True):
            card = cards[service_name(key, config)]
            service = TextService(card, voice, self._client, config, int(time.time()), Path(paths[key]))
            for name in (service.name, *config.aliases):
                if name in self.services:
                    raise UserError(f"two services are called {name!r}: names and aliases must differ", param="name")
                self.services[name] = service

    async def stop(self, drain_seconds: float) -> None:
        """Let running requests end for so long, then abort them, then end the engine."""
        deadline = time.monotonic() + drain_seconds
        while len(self._client) and self._client.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self._client.stop(now=True)
        for voice in self._voices:
            voice.close()

    def alive(self) -> bool:
        return self._client.alive

    def ready(self) -> bool:
        return bool(self.services) and self._client.alive

    async def stats(self) -> Mapping[str, Any]:
        """Snapshots of the meters by service."""
        return await self._client.stats()


def _warm_voice(path: Path) -> Voice:
    """The text side of a model, ready to speak: done while the engine loads its weights, so it costs no time."""
    voice = voice_of(path)
    voice.warm()
    return voice
