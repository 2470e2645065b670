"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from diastole.params import MAX_TOP_LOGPROBS, SamplingParams
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.generate import Generation
from diastole.serve.interface import TextService
from diastole.serve.openai import ChatRequest, Message, read, sampling, unsupported, wrong
from diastole.serve.replies import (
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    ChunkChoice,
    ContentLogprob,
    UsageReply,
    chat_logprobs,
)
from diastole.serve.slo import priority_of, slo_of
from diastole.serve.sse import Events, event
from diastole.types import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")


async def chat_completions(face: Face, exchange: Exchange) -> None:
    """Answer a conversation, whole or as events.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request = read(await exchange.body(face.config.max_body_bytes), ChatRequest)
    service = face.service(request.model)
    params = chat_params(request)
    messages = plain_messages(request.messages)
    slo = slo_of(request.slo, exchange.headers)
    priority = priority_of(request.priority, exchange.headers, service)

    async def work() -> None:
        prompt = await chat_prompt(service, messages)
        try:
            service.check(prompt, params)
            generation = Generation(
                service,
                [prompt],
                params,
                id=f"chatcmpl-{exchange.id}",
                terms=face.terms(exchange, service, slo),
                slo=slo,
                salt=request.cache_salt or "",
                priority=priority,
            )
        except UserError as e:
            raise of_user_error(e, {"prompt": "messages", **_names(request)}) from None
        if request.stream:
            await _stream(exchange, generation, request, face.config.ping_seconds)
        else:
            await _whole(exchange, generation, request)

    await exchange.run(work())


async def chat_prompt(service: TextService, messages: list[dict[str, Any]]) -> list[int]:
    """A conversation as prompt ids.

    Raises:
        ApiError: the model's template refuses it.
    """
    try:
        return await service.chat_ids(messages, None, {})
    except UserError as e:
        raise of_user_error(e) from None


def chat_params(request: ChatRequest) -> SamplingParams:
    """Sampling of a chat request.

    Raises:
        ApiError: a value is out of range, or two fields contradict each other.
    """
    long, short = request.max_completion_tokens, request.max_tokens
    if long is not None and short is not None and long != short:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens mean the same: give only one.")
    top = request.top_logprobs
    if top is not None and not request.logprobs:
        raise wrong("top_logprobs", "top_logprobs may be given only with logprobs: true.")
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise wrong("top_logprobs", f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}, not {top}.")
    logprobs = (top or 0) if request.logprobs else None
    return sampling(request, long if long is not None else short, logprobs, _names(request))


def _names(request: ChatRequest) -> dict[str, str]:
    return {} if request.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a template, each content one string.

    Raises:
        ApiError: none are given, a role is unknown, or a content is not text.
    """
    if not messages:
        raise wrong("messages", "messages must hold at least one message.", "empty_array")
    return [_plain(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _plain(message: Message, path: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise wrong(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}, not {message.role[:40]!r}.")
    plain: dict[str, Any] = {"role": message.role, "content": _text(message, path)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        if message.role != "assistant":
            raise wrong(f"{path}.tool_calls", f"{path}.tool_calls belong to messages of the assistant.")
        plain["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _text(message: Message, path: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.tool_calls:
            return ""
        raise wrong(f"{path}.content", f"{path}.content is required: a string or a list of text parts.")
    if not content:
        raise wrong(f"{path}.content", f"{path}.content must hold at least one text part.", "empty_array")
    texts = []
    for i, part in enumerate(content):
        where = f"{path}.content[{i}]"
        if part.type != "text":
            error = unsupported(f"{where}.type", "This model reads text only: send parts of type 'text'.")
            error.code = "unsupported_content"
            raise error
        if part.text is None:
            raise ApiError(400, f"{where}.text is required.", param=f"{where}.text", code="missing_required_parameter")
        texts.append(part.text)
    return "\n".join(texts)


async def _whole(exchange: Exchange, generation: Generation, request: ChatRequest) -> None:
    texts: list[list[str]] = [[] for _ in range(generation.choices)]
    logprobs: list[list[ContentLogprob]] = [[] for _ in texts]
    finishes = [""] * len(texts)
    async with generation.deltas() as deltas:
        async for delta in deltas:
            texts[delta.index].append(delta.text)
            if delta.logprobs:
                logprobs[delta.index] += chat_logprobs(generation.service.tokenizer, delta.logprobs)
            finishes[delta.index] = delta.finish or ""
    choices = [
        ChatChoice(
            i, ChatMessage("".join(texts[i])), ChatLogprobs(logprobs[i]) if request.logprobs else None, finishes[i]
        )
        for i in range(len(texts))
    ]
    reply = ChatReply(generation.id, generation.created, request.model, choices, generation.usage())
    await exchange.reply_json(200, reply)


async def _stream(exchange: Exchange, generation: Generation, request: ChatRequest, ping_seconds: float) -> None:
    no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(choices: list[ChunkChoice], usage: UsageReply | UnsetType | None = no_usage) -> ChatChunk:
        return ChatChunk(generation.id, generation.created, request.model, choices, usage)

    hello = b"".join(event(chunk([ChunkChoice(i, ChatDelta("assistant", ""))])) for i in range(generation.choices))
    async with Events(exchange, hello, ping_seconds) as events:
        async with generation.deltas() as deltas:
            async for delta in deltas:
                if delta.text or delta.logprobs:
                    logprobs = None
                    if request.logprobs and delta.logprobs:
                        logprobs = ChatLogprobs(chat_logprobs(generation.service.tokenizer, delta.logprobs))
                    await events.put(chunk([ChunkChoice(delta.index, ChatDelta(content=delta.text), logprobs)]))
                if delta.finish is not None:
                    await events.put(chunk([ChunkChoice(delta.index, ChatDelta(), None, delta.finish)]))
        if request.include_usage:
            await events.put(chunk([], generation.usage()))
        await events.done()
