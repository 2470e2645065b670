"""TextService: a language model as its users see it: messages and prompts in, pieces of text out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diastole.chat.tools import Format
from diastole.config import ServiceConfig
from diastole.frontend import wire
from diastole.frontend.speaker import Speakers
from diastole.frontend.supervisor import Supervisor
from diastole.frontend.types import Delta, RequestEnded, Usage
from diastole.frontend.voice import Voice
from diastole.params import PoolParams, SamplingParams
from diastole.text import Tokenizer
from diastole.types import SLO, Array


def seeded(params: SamplingParams) -> SamplingParams:
    """With a fresh seed where none was given: below this line every draw is determined."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))


class TextService:
    """One service of a running engine.

    Args:
        card: what the engine says of it; another engine may say something else.
        config: its settings.
        path: where its model lies, for those who list models.
    """

    def __init__(
        self, card: wire.Card, voice: Voice, engine: Supervisor, config: ServiceConfig, created: int, path: Path
    ) -> None:
        self.card = card
        self.aliases, self.created, self.path = config.aliases, created, path
        self._repetition_stop = config.repetition_stop
        self.voice, self._engine = voice, engine

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def context(self) -> int:
        return self.card.context

    @property
    def vocab(self) -> int:
        return self.card.vocab

    @property
    def width(self) -> int:
        return self.card.width

    @property
    def priorities(self) -> bool:
        return self.card.priorities

    @property
    def approximate(self) -> bool:
        return self.card.approximate

    @property
    def tokenizer(self) -> Tokenizer:
        return self.voice.tokenizer

    @property
    def tool_format(self) -> Format:
        return self.voice.telling.format

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

    def check(self, prompt: Sequence[int], params: SamplingParams | PoolParams) -> None:
        """What the engine would refuse, said before anything is sent.

        Raises:
            UserError: the prompt is empty or too long, or an id is outside the vocabulary.
        """
        from diastole.loops.masked import check_texts
        from diastole.loops.prompt import check_prompt

        if self.card.fills:
            check_texts(prompt, params, self.vocab, self.context, self.card.room)
            return
        check_prompt(prompt, params, self.vocab, self.context, self.card.room)

    def room_after(self, prompt: int) -> int:
        """Tokens that an answer to a prompt of so many tokens may have at most."""
        return max(0, min(self.context, self.card.room) - prompt)

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
        """Run a request; ends after one final delta per choice. Leaving the iterator early aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine failed on it.
            EngineLost: the engine died, or is being restarted.
        """
        ids = np.asarray(prompt, np.int32).tobytes()
        told = await asyncio.to_thread(self.voice.told, params, self.context) if params.prediction else params
        add = wire.Add(request_id, self.name, ids, seeded(told), slo, salt, priority)
        speakers = Speakers(self.tokenizer, params, self._repetition_stop)
        client = self._engine.client
        spoken = client.stream(add)
        usage = Usage(len(prompt), 0, 0)
        try:
            async for said in spoken:
                heard = speakers.hear(said)
                if heard is None:
                    continue
                delta, stopped = heard
                usage = delta.usage
                if stopped:
                    client.end_choice(request_id, delta.index, delta.finish or "stop")
                yield delta
        except RequestEnded as e:
            if e.finish != "deadline":
                raise
            for delta in speakers.cut(e.finish, usage):
                yield delta
        finally:
            await spoken.aclose()  # type: ignore[attr-defined]

    async def embed(
        self, prompt: Sequence[int], params: PoolParams, *, request_id: str, slo: SLO | None = None
    ) -> Array:
        """The vector of a prompt: (width,) float32, of length 1. Cancelling this aborts it.

        Raises:
            RequestEnded: the engine ended it, by its deadline or because it failed on it.
        """
        ids = np.asarray(prompt, np.int32).tobytes()
        return np.frombuffer(
            await self._engine.client.embed(wire.Embed(request_id, self.name, ids, params, slo)), np.float32
        )
