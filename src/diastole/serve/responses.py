"""POST /v1/responses, for text. Nothing is stored: a conversation is sent whole each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from diastole.params import SamplingParams
from diastole.serve import bounds
from diastole.serve.bounds import documented
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.generate import Generation
from diastole.serve.openai import NEUTRAL, Common, Part, read, required, sampling, unsupported, wrong
from diastole.serve.response_events import Answer, Fields
from diastole.serve.slo import priority_of, slo_of
from diastole.serve.sse import Events
from diastole.serve.structured import shaped
from diastole.types import UserError

ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text")
# What messages of floors below call a field, and what this API calls it.
NAMES = {"prompt": "input", "messages": "input", "max_tokens": "max_output_tokens"}
UNSERVED: dict[str, tuple[Any, ...]] = {
    **NEUTRAL,
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "echo": (False,),
    "include": ([],),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "moderation": (),
    "n": (1,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


class Item(msgspec.Struct):
    """A message of the conversation; output items of earlier answers are such messages too."""

    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None


class TextWish(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Common, kw_only=True):
    """POST /v1/responses."""

    input: bounds.Text | Annotated[list[Item], documented(minItems=1)]
    instructions: str | None = None
    max_tokens: bounds.Refused | None = None  # see UNSERVED
    n: Annotated[int, documented(const=1)] | None = None
    max_output_tokens: bounds.Tokens | None = None
    metadata: dict[str, str] | None = None
    text: TextWish | None = None

    def told(self, params: SamplingParams) -> Fields:
        """What the answer repeats of the request."""
        return {
            "model": self.model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "temperature": params.temperature,
            "top_p": params.top_p,
            "text": {"format": (self.text and self.text.format) or {"type": "text"}},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "background": False,
            "store": False,
            "truncation": "disabled",
            "user": self.user,
        }


async def responses(face: Face, exchange: Exchange) -> None:
    """Answer a conversation, whole or as events.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request, messages = await face.bodies.read(exchange, _parse)
    service = face.service(request.model)
    form = text_format(request.text)
    plain = sampling(request, request.max_output_tokens, None, NAMES)
    slo = slo_of(request.slo, exchange.headers)
    priority = priority_of(request.priority, exchange.headers, service)

    async def work() -> None:
        params, names = await shaped(request, plain, NAMES, {"text.format": form})
        id, salt = f"resp_{exchange.id}", request.cache_salt or ""
        try:
            prompt = await service.chat_ids(messages, None, {})
            service.check(prompt, params)
            terms = face.terms(exchange, service, slo)
            generation = Generation(
                service,
                [prompt],
                params,
                id=id,
                terms=terms,
                slo=slo,
                salt=salt,
                priority=priority,
                names=names,
            )
        except UserError as e:
            raise of_user_error(e, names) from None
        answer = Answer(id, generation.created, request.told(params))
        if request.stream:
            await _stream(exchange, generation, answer, face.config.ping_seconds)
        else:
            await _whole(exchange, generation, answer)

    await exchange.run(work())


def text_format(text: TextWish | None) -> dict[str, Any] | None:
    """What form the text shall have; None: any.

    Raises:
        ApiError: a verbosity is asked for, or a schema is missing.
    """
    if text is None:
        return None
    if text.verbosity not in (None, "medium"):
        raise unsupported("text.verbosity", "Leave it out.")
    if text.format is not None and text.format.get("type") == "json_schema" and "schema" not in text.format:
        raise required("text.format.schema")
    return text.format


def _parse(body: bytes) -> tuple[ResponsesRequest, list[dict[str, Any]]]:
    request = read(body, ResponsesRequest, UNSERVED)
    return request, conversation(request)


def conversation(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Messages for a template, each content one string.

    Raises:
        ApiError: there are none, an item is no message, a role is unknown, or a content is not text.
    """
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        if not request.input:
            raise wrong("input", "input is empty: give some text.", "empty_prompt")
        return [*messages, {"role": "user", "content": request.input}]
    if not request.input:
        raise wrong("input", "input must hold at least one message.", "empty_array")
    return [*messages, *(_message(item, f"input[{i}]") for i, item in enumerate(request.input))]


def _message(item: Item, path: str) -> dict[str, Any]:
    if item.type not in (None, "message"):
        raise unsupported(f"{path}.type", "Only items of type 'message' are.")
    if item.role not in ROLES:
        said = "missing" if item.role is None else repr(item.role[:40])
        raise wrong(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}; it is {said}.")
    return {"role": item.role, "content": _text(item.content, f"{path}.content")}


def _text(content: str | Sequence[Part] | None, path: str) -> str:
    if isinstance(content, str):
        return content
    if not content:
        raise wrong(path, f"{path} must be a string or hold at least one text part.")
    texts = []
    for i, part in enumerate(content):
        if part.type not in TEXT_PARTS:
            error = unsupported(f"{path}[{i}].type", f"This model reads text only: send {' or '.join(TEXT_PARTS)}.")
            error.code = "unsupported_content"
            raise error
        if part.text is None:
            where = f"{path}[{i}].text"
            raise ApiError(400, f"{where} is required.", param=where, code="missing_required_parameter")
        texts.append(part.text)
    return "\n".join(texts)


async def _whole(exchange: Exchange, generation: Generation, answer: Answer) -> None:
    finish = ""
    async with generation.deltas() as deltas:
        async for delta in deltas:
            answer.say(delta.text)
            finish = delta.finish or ""
    _, response = answer.completed(finish, generation.usage())
    await exchange.reply_json(200, response)


async def _stream(exchange: Exchange, generation: Generation, answer: Answer, ping_seconds: float) -> None:
    exchange.last_words = lambda error: exchange.dialect.event(answer.failure(error))
    finish = ""
    async with Events(exchange, answer.opening(), ping_seconds) as events:
        async with generation.deltas() as deltas:
            async for delta in deltas:
                if delta.text:
                    await events.put(answer.delta(delta.text))
                finish = delta.finish or ""
        for event in answer.closing(finish, generation.usage()):
            await events.put(event)
        await events.done()
