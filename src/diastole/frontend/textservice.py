"""TextService: a language model as its users see it: messages and prompts in, pieces of text out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diastole.config import ServiceConfig
from diastole.frontend import wire
from diastole.frontend.client import EngineClient
from diastole.frontend.speaker import Speakers
from diastole.frontend.types import Delta
from diastole.frontend.voice import Voice
from diastole.params import SamplingParams
from diastole.text import Tokenizer
from diastole.types import SLO


def seeded(params: SamplingParams) -> SamplingParams:
    """With a fresh seed where none was given: below this line every draw is determined."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))


class TextService:
    """One service of a running engine.

    Args:
        card: what the engine says of it.
        config: its settings.
        path: where its model lies, for those who list models.
    """

    def __init__(
        self, card: wire.Card, voice: Voice, client: EngineClient, config: ServiceConfig, created: int, path: Path
    ) -> None:
        self.name, self.context, self.vocab, self.room = card.name, card.context, card.vocab, card.room
        self.priorities = card.priorities
        self.aliases, self.created, self.path = config.aliases, created, path
        self._repetition_stop = config.repetition_stop
        self.voice, self._client = voice, client

    @property
    def tokenizer(self) -> Tokenizer:
        return self.voice.tokenizer

    async def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """See ``Voice.chat``; off the event loop."""
        return await asyncio.to_thread(self.voice.chat, messages, tools, options)

    async def encode(self, text: str) -> list[int]:
        """See ``Voice.prompt``; off the event loop."""
        return await asyncio.to_thread(self.voice.prompt, text)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """What the engine would refuse, said before anything is sent.

        Raises:
            UserError: the prompt is empty or too long, or an id is outside the vocabulary.
        """
        from diastole.loops.ar import check_prompt

        check_prompt(prompt, params, self.vocab, self.context, self.room)

    def room_after(self, prompt: int) -> int:
        """Tokens that an answer to a prompt of so many tokens may have at most."""
        return max(0, min(self.context, self.room) - prompt)

    async def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        slo: SLO | None = None,
        salt: str = "",
        priority: int = 0,
    ) -> AsyncIterator[Delta]:
        """Run a request; ends after one final delta per choice. Leaving the iterator early aborts it."""
        ids = np.asarray(prompt, np.int32).tobytes()
        add = wire.Add(request_id, self.name, ids, seeded(params), slo, salt, priority)
        speakers = Speakers(self.tokenizer, params, self._repetition_stop)
        spoken = self._client.stream(add)
        try:
            async for said in spoken:
                heard = speakers.hear(said)
                if heard is None:
                    continue
                delta, stopped = heard
                if stopped:
                    self._client.end_choice(request_id, delta.index, delta.finish or "stop")
                yield delta
        finally:
            await spoken.aclose()  # type: ignore[attr-defined]
