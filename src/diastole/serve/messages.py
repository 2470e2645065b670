"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, text and tools."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import msgspec

from diastole.chat.tools import Listener
from diastole.frontend.types import Delta
from diastole.serve.answer import Answer
from diastole.serve.anthropic import (
    NAMES,
    CountRequest,
    MessagesRequest,
    params_of,
    plain_messages,
    read,
    toolbox_of,
)
from diastole.serve.blocks import (
    Blocks,
    MessageDelta,
    MessageEnd,
    MessageReply,
    MessageStart,
    MessageStop,
    Spent,
    block_of,
)
from diastole.serve.chat import chat_prompt
from diastole.serve.errors import of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.generate import Generation
from diastole.serve.slo import priority_of, slo_of
from diastole.serve.sse import Events
from diastole.serve.toolbox import Toolbox
from diastole.types import UserError


class CountReply(msgspec.Struct):
    input_tokens: int


R = TypeVar("R", bound=CountRequest)


async def messages(face: Face, exchange: Exchange) -> None:
    """Answer a conversation, whole or as events.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request, conversation = await face.bodies.read(exchange, partial(_parse, type=MessagesRequest))
    service = face.service(request.model)
    plain = params_of(request)
    tools = toolbox_of(request)
    slo = slo_of(None, exchange.headers)
    priority = priority_of(None, exchange.headers, service)

    async def work() -> None:
        params, names = await tools.shaped(service.tool_format, plain, NAMES)
        prompt = await chat_prompt(service, conversation, tools.told)
        try:
            service.check(prompt, params)
            id, terms = f"msg_{exchange.id}", face.terms(exchange, service, slo)
            generation = Generation(
                service, [prompt], params, id=id, terms=terms, slo=slo, priority=priority, names=names
            )
        except UserError as e:
            raise of_user_error(e, names) from None
        if request.stream:
            await _stream(exchange, generation, request, tools, face.config.ping_seconds)
        else:
            await _whole(exchange, generation, request, tools)

    await exchange.run(work())


async def count_tokens(face: Face, exchange: Exchange) -> None:
    """How many tokens a conversation has as a prompt.

    Raises:
        ApiError: the request is wrong.
    """
    face.check_ready()
    request, conversation = await face.bodies.read(exchange, partial(_parse, type=CountRequest))
    service = face.service(request.model)
    ids = await chat_prompt(service, conversation, toolbox_of(request).told)
    await exchange.reply_json(200, CountReply(len(ids)))


def _parse(body: bytes, type: type[R]) -> tuple[R, list[dict[str, Any]]]:
    request = read(body, type)
    return request, plain_messages(request)


async def _whole(exchange: Exchange, generation: Generation, request: MessagesRequest, tools: Toolbox) -> None:
    listener, answer = tools.listener(generation.service.tool_format), Answer()
    reply = MessageReply(generation.id, request.model, [], Spent(0, 0))
    async with generation.deltas() as deltas:
        async for delta in deltas:
            answer.add(listener.push(delta.text))
            if delta.finish is not None:
                answer.add(listener.flush())
                answer.end()
                reply.stop_reason, reply.stop_sequence = _reason(delta, listener)
    reply.content = [block_of(part) for part in answer.parts]
    reply.usage = _spent(generation)
    await exchange.reply_json(200, reply)


async def _stream(
    exchange: Exchange, generation: Generation, request: MessagesRequest, tools: Toolbox, ping_seconds: float
) -> None:
    listener, blocks = tools.listener(generation.service.tool_format), Blocks()
    # What of the prompt was cached is known later: the end has the true counts.
    begun = MessageReply(generation.id, request.model, [], Spent(len(generation.prompts[0]), 0))
    async with Events(exchange, [MessageStart(begun)], ping_seconds) as events:
        end: MessageEnd | None = None
        async with generation.deltas() as deltas:
            async for delta in deltas:
                pieces = listener.push(delta.text)
                if delta.finish is not None:
                    pieces += listener.flush()
                    end = MessageEnd(*_reason(delta, listener))
                for event in blocks.events(pieces):
                    await events.put(event)
        assert end is not None  # a generation that ends without a finish raises
        for event in blocks.close():
            await events.put(event)
        await events.put(MessageDelta(end, _spent(generation)))
        await events.put(MessageStop())
        await events.done()


def _reason(delta: Delta, listener: Listener) -> tuple[str, str | None]:
    """Why an answer ended, and the stop sequence that ended it."""
    if delta.finish in ("length", "deadline"):  # the API has no word for the second, and this one says: cut short
        return "max_tokens", None
    if delta.stop is not None:
        return "stop_sequence", delta.stop
    return "tool_use" if listener.calls else "end_turn", None


def _spent(generation: Generation) -> Spent:
    usage = generation.usage()
    cached = usage.prompt_tokens_details.cached_tokens
    return Spent(usage.prompt_tokens - cached, usage.completion_tokens, cached)
