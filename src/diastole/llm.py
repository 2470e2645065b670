"""LLM: a language model in this process, for scripts and notebooks. AsyncLLM: the same for asyncio programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import Any

import numpy as np

from diastole.assets import resolve
from diastole.config import Config, ServiceConfig
from diastole.engine.engine import Engine
from diastole.frontend.assembly import build_engine
from diastole.frontend.backend import Backend
from diastole.frontend.host import spoken_of
from diastole.frontend.link import Thread
from diastole.frontend.speaker import Speakers
from diastole.frontend.textservice import seeded
from diastole.frontend.types import Delta, RequestEnded, TokenLogprob, Usage
from diastole.frontend.voice import voice_of
from diastole.frontend.wire import of_texts
from diastole.params import PoolParams, SamplingParams
from diastole.types import SLO, Array, Ended, Event, Request

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]  # text, token ids, or chat messages


@dataclass(slots=True)
class Completion:
    """One whole choice."""

    text: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish: str | None
    usage: Usage


class LLM:
    """A language model for batches offline.

    >>> with LLM("smollm2-135m") as llm:
    ...     print(llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(max_tokens=20)).text)

    Args:
        model: an asset's name (see ``diastole pull``), a GGUF file, a Hugging Face directory or hub id.
        settings: fields of ``ServiceConfig``, and ``threads`` for all kernels.

    Raises:
        UserError: the model or a setting is wrong.
    """

    def __init__(self, model: str = "smollm2-135m", *, threads: int = 0, **settings: Any) -> None:
        self._open(_config(model, threads, settings))

    @classmethod
    def of(cls, config: Config) -> LLM:
        """The first service of a configuration."""
        llm = cls.__new__(cls)
        key, service = next(iter(config.service.items()))
        llm._open(replace(config, service={key: service}))
        return llm

    def _open(self, config: Config) -> None:
        self._engine, cards, self.kernels = build_engine(config)
        card = of_texts(cards[0])
        self.name, self.context, self.width = card.name, card.context, card.width
        service = next(iter(config.service.values()))
        self.voice, self._repetition_stop = voice_of(resolve(service.model)), service.repetition_stop
        self._ids = count()

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> list[list[Completion]]:
        """Run all prompts together: for each, its ``params.n`` completions."""
        params = params or SamplingParams()
        return self._collect([(p, params) for p in prompts])

    def generate_each(self, wishes: Sequence[tuple[Prompt, SamplingParams]]) -> list[Completion]:
        """Run prompts together, each with params of its own: the first completion of each."""
        return [choices[0] for choices in self._collect(wishes)]

    def _collect(self, wishes: Sequence[tuple[Prompt, SamplingParams]]) -> list[list[Completion]]:
        done: list[dict[int, Completion]] = [{} for _ in wishes]
        for which, delta in self._run(wishes):
            kept = done[which].get(delta.index)
            if kept is None:
                done[which][delta.index] = _begin(delta)
            else:
                _extend(kept, delta)
        return [[choices[i] for i in range(p.n)] for choices, (_, p) in zip(done, wishes, strict=True)]

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Completion:
        """Answer one conversation."""
        return self.generate([messages], params)[0][0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Answer piece by piece. Leaving the iterator early ends the request."""
        for _, delta in self._run([(prompt, params or SamplingParams())]):
            yield delta

    def embed(self, prompts: Sequence[Prompt], params: PoolParams | None = None) -> Array:
        """Read all prompts together: a vector of length 1 for each, (len(prompts), width) float32.

        Raises:
            UserError: a prompt is empty or longer than the context.
        """
        vectors = np.empty((len(prompts), self.width), np.float32)
        rows: dict[str, int] = {}
        try:
            for i, prompt in enumerate(prompts):
                id = f"llm-{next(self._ids)}"
                ids = np.asarray(self._to_ids(prompt), np.int32)
                self._engine.add(Request(id, self.name, ids, params or PoolParams(), SLO(1e9, 1e9)))
                rows[id] = i
            while self._engine.busy:
                for event in self._events():
                    vectors[rows[event.id]] = event.data.vector
        finally:
            for id in rows:
                self._engine.abort(id)
        return vectors

    def _run(self, wishes: Sequence[tuple[Prompt, SamplingParams]]) -> Iterator[tuple[int, Delta]]:
        which: dict[str, int] = {}
        speakers: dict[str, Speakers] = {}
        try:
            for i, (prompt, params) in enumerate(wishes):
                id = f"llm-{next(self._ids)}"
                ids, told = np.asarray(self._to_ids(prompt), np.int32), self.voice.told(params, self.context)
                self._engine.add(Request(id, self.name, ids, seeded(told), SLO(1e9, 1e9)))
                which[id], speakers[id] = i, Speakers(self.voice.tokenizer, params, self._repetition_stop)
            while self._engine.busy:
                for event in self._events():
                    heard = speakers[event.id].hear(spoken_of(event, self._engine.guesses))
                    if heard is not None:
                        delta, stopped = heard
                        if stopped:
                            self._engine.abort(event.id, delta.finish or "stop", event.choice)
                        yield which[event.id], delta
        finally:
            for id in which:
                self._engine.abort(id)

    def _events(self) -> Iterator[Event]:
        """Of one step.

        Raises:
            RequestEnded: the engine failed on a request; its log says how.
        """
        for event in self._engine.step() or ():
            if isinstance(event.data, Ended):
                raise RequestEnded(event.data.finish)
            yield event

    def _to_ids(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.voice.prompt(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.voice.chat(prompt, None, {})  # type: ignore[arg-type]
        return prompt  # type: ignore[return-value]

    @property
    def engine(self) -> Engine:
        """Its engine, for those who drive it by hand."""
        return self._engine

    def counters(self) -> Mapping[str, int]:
        """What the engine has counted since it began: see ``metrics.Meter``."""
        return self._engine.services[0].meter.counters

    @property
    def idle(self) -> bool:
        """Whether no request is running."""
        return not self._engine.busy

    def close(self) -> None:
        """Free the model."""
        self._engine.close()
        self.voice.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncLLM:
    """A language model for asyncio programs, its engine on a thread of this process.

    >>> async with AsyncLLM("smollm2-135m") as llm:
    ...     async for delta in llm.stream("The heart"):
    ...         print(delta.text, end="")
    """

    def __init__(self, model: str = "smollm2-135m", *, threads: int = 0, **settings: Any) -> None:
        config = _config(model, threads, settings)
        self._backend = Backend(config, Thread)
        self._ids = count()

    async def __aenter__(self) -> AsyncLLM:
        await self._backend.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._backend.stop(0)

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[Delta]:
        """Answer piece by piece. Leaving the iterator early ends the request.

        Raises:
            UserError: the prompt or a parameter is wrong.
        """
        service = next(iter(self._backend.services.values()))
        if isinstance(prompt, str):
            ids: Sequence[int] = await service.encode(prompt)
        elif prompt and isinstance(prompt[0], Mapping):
            ids = await service.chat_ids(prompt, None, {})  # type: ignore[arg-type]
        else:
            ids = prompt  # type: ignore[assignment]
        async for delta in service.stream(ids, params or SamplingParams(), request_id=f"llm-{next(self._ids)}"):
            yield delta


def _config(model: str, threads: int, settings: Mapping[str, Any]) -> Config:
    base = Config()
    service = ServiceConfig(model=model, **settings)
    engine = replace(base.engine, threads=threads)
    server = replace(base.server, engine_timeout_seconds=0.0)  # a thread that hangs cannot be ended: do not judge it
    return replace(base, engine=engine, server=server, service={service.name or "llm": service})


def _begin(delta: Delta) -> Completion:
    logprobs = None if delta.logprobs is None else list(delta.logprobs)
    return Completion(delta.text, list(delta.ids), logprobs, delta.finish, delta.usage)


def _extend(kept: Completion, delta: Delta) -> None:
    kept.text += delta.text
    kept.ids += delta.ids
    if kept.logprobs is not None and delta.logprobs is not None:
        kept.logprobs += delta.logprobs
    kept.finish, kept.usage = delta.finish, delta.usage
