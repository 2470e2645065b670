"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from diastole.frontend.types import Delta
from diastole.params import SamplingParams
from diastole.serve.errors import of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.generate import Generation
from diastole.serve.interface import TextService
from diastole.serve.openai import DEFAULT_COMPLETION_TOKENS, CompletionRequest, read, sampling, wrong
from diastole.serve.prompts import Prompt, split_prompts
from diastole.serve.replies import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    UsageReply,
    completion_logprobs,
    settled_of,
    started,
)
from diastole.serve.slo import priority_of, slo_of
from diastole.serve.sse import Events
from diastole.serve.structured import shaped
from diastole.types import UserError

MAX_PROMPTS = 128
MAX_CHOICES = 128  # of all prompts together


async def completions(face: Face, exchange: Exchange) -> None:
    """Continue one or several prompts, whole or as events.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request, prompts = await face.bodies.read(exchange, _parse)
    service = face.service(request.model)
    limit = face.ceilings.usual(DEFAULT_COMPLETION_TOKENS) if request.max_tokens is None else request.max_tokens
    plain = sampling(request, limit, request.logprobs, {})
    if len(prompts) * plain.n > MAX_CHOICES:
        message = f"n times the number of prompts may be at most {MAX_CHOICES}, not {len(prompts) * plain.n}."
        raise wrong("n", message)
    if request.echo and request.logprobs is not None:
        raise wrong("echo", "echo together with logprobs is not supported: a prompt's tokens are not scored.")
    slo = slo_of(request.slo, exchange.headers)
    priority = priority_of(request.priority, exchange.headers, service)

    async def work() -> None:
        params, names = await shaped(request, plain, {})
        ids = [await prompt_ids(service, prompt, params, names) for prompt in prompts]
        try:
            generation = Generation(
                service,
                ids,
                params,
                id=f"cmpl-{exchange.id}",
                terms=face.terms(exchange, service, slo),
                slo=slo,
                salt=request.cache_salt or "",
                priority=priority,
                names=names,
            )
        except UserError as e:
            raise of_user_error(e, names) from None
        heads = [""] * generation.choices
        if request.echo:
            texts = [p if isinstance(p, str) else service.tokenizer.decode(p) for p in prompts]
            heads = [text for text in texts for _ in range(params.n)]
        if request.stream:
            await _stream(exchange, generation, request, heads, face.config.ping_seconds)
        else:
            await _whole(exchange, generation, request, heads)

    await exchange.run(work())


def _parse(body: bytes) -> tuple[CompletionRequest, list[Prompt]]:
    request = read(body, CompletionRequest)
    return request, split_prompts(request.prompt, "prompt", MAX_PROMPTS)


async def prompt_ids(
    service: TextService, prompt: Prompt, params: SamplingParams, names: Mapping[str, str]
) -> list[int]:
    """A prompt as ids that the engine will take.

    Raises:
        ApiError: it is too long, or an id is outside the vocabulary.
    """
    try:
        ids = await service.encode(prompt) if isinstance(prompt, str) else prompt
        service.check(ids, params)
    except UserError as e:
        raise of_user_error(e, names) from None
    return ids


class _Choices:
    """What the choices of an answer have said so far, for logprobs' offsets."""

    def __init__(self, generation: Generation, wanted: bool) -> None:
        self._tokenizer = generation.service.tokenizer
        self._wanted = wanted
        self._offsets = [0] * generation.choices

    def logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        if not self._wanted or delta.logprobs is None:
            return None
        logprobs = completion_logprobs(self._tokenizer, delta.logprobs, self._offsets[delta.index])
        self._offsets[delta.index] += sum(started(self._tokenizer.token_bytes(t.id)) for t in delta.logprobs)
        return logprobs


async def _whole(exchange: Exchange, generation: Generation, request: CompletionRequest, heads: list[str]) -> None:
    choices = [CompletionChoice(i, "") for i in range(generation.choices)]
    texts = [[head] for head in heads]
    told = _Choices(generation, request.logprobs is not None)
    if request.logprobs is not None:
        for choice in choices:
            choice.logprobs = CompletionLogprobs([], [], [], [])
    async with generation.deltas() as deltas:
        async for delta in deltas:
            choice = choices[delta.index]
            texts[delta.index].append(delta.text)
            choice.finish_reason = delta.finish
            if (new := told.logprobs(delta)) is not None and (all_ := choice.logprobs) is not None:
                all_.tokens += new.tokens
                all_.token_logprobs += new.token_logprobs
                all_.top_logprobs += new.top_logprobs
                all_.text_offset += new.text_offset
    for choice, pieces in zip(choices, texts, strict=True):
        choice.text = "".join(pieces)
    reply = CompletionReply(generation.id, generation.created, request.model, choices, generation.usage())
    await exchange.reply_json(200, reply)


async def _stream(
    exchange: Exchange, generation: Generation, request: CompletionRequest, heads: list[str], ping_seconds: float
) -> None:
    no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(choices: list[CompletionChoice], usage: UsageReply | UnsetType | None = no_usage) -> CompletionReply:
        return CompletionReply(generation.id, generation.created, request.model, choices, usage)

    told = _Choices(generation, request.logprobs is not None)
    unsaid = set(range(generation.choices)) if request.echo else set()  # choices whose prompt is still to be echoed
    async with Events(exchange, (), ping_seconds) as events:
        async with generation.deltas() as deltas:
            async for delta in deltas:
                text = delta.text
                if delta.index in unsaid:
                    unsaid.remove(delta.index)
                    text = heads[delta.index] + text
                logprobs = told.logprobs(delta)
                settled = settled_of(delta)
                if text or settled or (logprobs is not None and logprobs.tokens):
                    await events.put(chunk([CompletionChoice(delta.index, text, logprobs, settled=settled)]))
                if delta.finish is not None:
                    await events.put(chunk([CompletionChoice(delta.index, "", None, delta.finish)]))
        if request.include_usage:
            await events.put(chunk([], generation.usage()))
        await events.done()
