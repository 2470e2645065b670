"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import UNSET, UnsetType

from diastole.chat.tools import Listener, Piece
from diastole.frontend.types import Delta
from diastole.params import MAX_TOP_LOGPROBS, SamplingParams
from diastole.serve.answer import Answer
from diastole.serve.errors import of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.generate import Generation
from diastole.serve.interface import TextService
from diastole.serve.openai import (
    CHAT_UNSERVED,
    ROLES,
    ChatRequest,
    Message,
    Part,
    Prediction,
    read,
    required,
    sampling,
    unsupported,
    wrong,
)
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
    settled_of,
)
from diastole.serve.slo import priority_of, slo_of
from diastole.serve.sse import Events
from diastole.serve.structured import shaped
from diastole.serve.toolbox import Toolbox, unknown_result
from diastole.serve.tools import call_names, plain_calls, streamed_call, toolbox_of, whole_calls
from diastole.types import UserError


async def chat_completions(face: Face, exchange: Exchange) -> None:
    """Answer a conversation, whole or as events.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request, messages = await face.bodies.read(exchange, _parse)
    service = face.service(request.model)
    plain = chat_params(request)
    tools = toolbox_of(request)
    slo = slo_of(request.slo, exchange.headers)
    priority = priority_of(request.priority, exchange.headers, service)

    async def work() -> None:
        params, names = await shaped(request, plain, {"prompt": "messages", **_names(request)})
        params, names = await tools.shaped(service.tool_format, params, names)
        prompt = await chat_prompt(service, messages, tools.told)
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
                names=names,
            )
        except UserError as e:
            raise of_user_error(e, names) from None
        if request.stream:
            await _stream(exchange, generation, request, tools, face.config.ping_seconds)
        else:
            await _whole(exchange, generation, request, tools)

    await exchange.run(work())


def _parse(body: bytes) -> tuple[ChatRequest, list[dict[str, Any]]]:
    request = read(body, ChatRequest, CHAT_UNSERVED)
    return request, plain_messages(request.messages)


async def chat_prompt(
    service: TextService, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """A conversation as prompt ids.

    Raises:
        ApiError: the model's template refuses it.
    """
    try:
        return await service.chat_ids(messages, tools, {})
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
    params = sampling(request, long if long is not None else short, logprobs, _names(request))
    return params if request.prediction is None else replace(params, prediction=_predicted(request.prediction))


def _predicted(prediction: Prediction) -> str:
    if prediction.type != "content":
        raise wrong("prediction.type", f"prediction.type must be 'content', not {prediction.type[:40]!r}.")
    if isinstance(prediction.content, str):
        return prediction.content
    return _joined(prediction.content, "prediction.content")


def _names(request: ChatRequest) -> dict[str, str]:
    return {} if request.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a template, each content one string.

    Raises:
        ApiError: none are given, a role is unknown, a content is not text, or a tool's result answers no call.
    """
    if not messages:
        raise wrong("messages", "messages must hold at least one message.", "empty_array")
    names = call_names(messages)
    return [_plain(m, f"messages[{i}]", names) for i, m in enumerate(messages)]


def _plain(message: Message, path: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Args:
    names: functions by the ids of their calls.
    """
    if message.role not in ROLES:
        raise wrong(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}, not {message.role[:40]!r}.")
    plain: dict[str, Any] = {"role": message.role, "content": _text(message, path)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        if message.role != "assistant":
            raise wrong(f"{path}.tool_calls", f"{path}.tool_calls belong to messages of the assistant.")
        plain["tool_calls"] = plain_calls(message.tool_calls, f"{path}.tool_calls")
    if message.role == "tool":
        where, id = f"{path}.tool_call_id", message.tool_call_id
        if id is None:
            raise required(where)
        if id not in names:
            raise unknown_result(where, id)
        plain["tool_call_id"] = id
        plain.setdefault("name", names[id])
    return plain


def _text(message: Message, path: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.tool_calls:
            return ""
        raise wrong(f"{path}.content", f"{path}.content is required: a string or a list of text parts.")
    return _joined(content, f"{path}.content")


def _joined(content: Sequence[Part], path: str) -> str:
    """The text of text parts."""
    if not content:
        raise wrong(path, f"{path} must hold at least one text part.", "empty_array")
    texts = []
    for i, part in enumerate(content):
        where = f"{path}[{i}]"
        if part.type != "text":
            error = unsupported(f"{where}.type", "This model reads text only: send parts of type 'text'.")
            error.code = "unsupported_content"
            raise error
        if part.text is None:
            raise required(f"{where}.text")
        texts.append(part.text)
    return "\n".join(texts)


async def _whole(exchange: Exchange, generation: Generation, request: ChatRequest, tools: Toolbox) -> None:
    listeners = [tools.listener(generation.service.tool_format) for _ in range(generation.choices)]
    answers = [Answer() for _ in listeners]
    logprobs: list[list[ContentLogprob]] = [[] for _ in listeners]
    finishes = [""] * len(listeners)
    async with generation.deltas() as deltas:
        async for delta in deltas:
            listener, answer = listeners[delta.index], answers[delta.index]
            answer.add(listener.push(delta.text))
            if delta.logprobs:
                logprobs[delta.index] += chat_logprobs(generation.service.tokenizer, delta.logprobs)
            if delta.finish is not None:
                answer.add(listener.flush())
                answer.end()
                finishes[delta.index] = _finish(delta.finish, listener)
    choices = [
        ChatChoice(i, _message(answers[i]), ChatLogprobs(logprobs[i]) if request.logprobs else None, finishes[i])
        for i in range(len(answers))
    ]
    reply = ChatReply(generation.id, generation.created, request.model, choices, generation.usage())
    await exchange.reply_json(200, reply)


def _message(answer: Answer) -> ChatMessage:
    calls = whole_calls(answer)
    return ChatMessage(answer.text or (None if calls else ""), None, calls)


def _finish(finish: str, listener: Listener) -> str:
    return "tool_calls" if finish == "stop" and listener.calls else finish


async def _stream(
    exchange: Exchange, generation: Generation, request: ChatRequest, tools: Toolbox, ping_seconds: float
) -> None:
    no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(choices: list[ChunkChoice], usage: UsageReply | UnsetType | None = no_usage) -> ChatChunk:
        return ChatChunk(generation.id, generation.created, request.model, choices, usage)

    def logprobs_of(delta: Delta) -> ChatLogprobs | None:
        wanted = request.logprobs and delta.logprobs
        return ChatLogprobs(chat_logprobs(generation.service.tokenizer, delta.logprobs or ())) if wanted else None

    listeners = [tools.listener(generation.service.tool_format) for _ in range(generation.choices)]
    hello = [chunk([ChunkChoice(i, ChatDelta("assistant", ""))]) for i in range(generation.choices)]
    async with Events(exchange, hello, ping_seconds) as events:
        async with generation.deltas() as deltas:
            async for delta in deltas:
                listener, logprobs = listeners[delta.index], logprobs_of(delta)
                pieces = listener.push(delta.text)
                if delta.finish is not None:
                    pieces += listener.flush()
                shown = [d for d in map(_shown, pieces) if d is not None]
                settled = settled_of(delta)
                for said in shown or ([ChatDelta(content="")] if logprobs or settled else []):
                    await events.put(chunk([ChunkChoice(delta.index, said, logprobs, settled=settled)]))
                    logprobs, settled = None, UNSET
                if delta.finish is not None:
                    finish = _finish(delta.finish, listener)
                    await events.put(chunk([ChunkChoice(delta.index, ChatDelta(), None, finish)]))
        if request.include_usage:
            await events.put(chunk([], generation.usage()))
        await events.done()


def _shown(piece: Piece) -> ChatDelta | None:
    """A piece as a stream shows it; None if it shows nothing."""
    if isinstance(piece, str):
        return ChatDelta(content=piece)
    call = streamed_call(piece)
    return None if call is None else ChatDelta(tool_calls=[call])
