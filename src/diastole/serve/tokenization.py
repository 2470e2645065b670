"""POST /tokenize and /detokenize: what text costs, before it is sent."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import msgspec

from diastole.serve import bounds
from diastole.serve.bounds import documented
from diastole.serve.chat import chat_prompt, plain_messages
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.interface import TextService
from diastole.serve.limits import decode
from diastole.serve.openai import Message, wrong
from diastole.serve.replies import token_name
from diastole.types import UserError


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], documented(minItems=1)] | None = None
    return_token_strs: bool | None = None


class TokenizeReply(msgspec.Struct):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[bounds.TokenId]


class DetokenizeReply(msgspec.Struct):
    prompt: str


async def tokenize(face: Face, exchange: Exchange) -> None:
    """Token ids of a text, or of a conversation as the model's template writes it.

    Raises:
        ApiError: the request is wrong.
    """
    face.check_ready()
    request, messages = await face.bodies.read(exchange, _parse)
    service = face.only_service(request.model)
    if messages is not None:
        ids = await chat_prompt(service, messages)
    else:
        try:
            ids = await service.encode(request.prompt or "")
        except UserError as e:
            raise of_user_error(e) from None
    names = None
    if request.return_token_strs:
        names = [token_name(service.tokenizer.token_bytes(i)) for i in ids]
    await exchange.reply_json(200, TokenizeReply(ids, len(ids), service.context, names))


def _parse(body: bytes) -> tuple[TokenizeRequest, list[dict[str, Any]] | None]:
    request = decode(body, TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "Give either prompt or messages.", param="prompt", code="missing_required_parameter")
    return request, None if request.messages is None else plain_messages(request.messages)


async def detokenize(face: Face, exchange: Exchange) -> None:
    """The text of token ids.

    Raises:
        ApiError: the request is wrong.
    """
    face.check_ready()
    request = await face.bodies.read(exchange, partial(decode, type=DetokenizeRequest))
    service = face.only_service(request.model)
    text = await asyncio.to_thread(_text, service, request.tokens)
    await exchange.reply_json(200, DetokenizeReply(text))


def _text(service: TextService, tokens: list[int]) -> str:
    for i, id in enumerate(tokens):
        if not 0 <= id < service.vocab:
            message = f"tokens[{i}] is {str(id)[:20]}: ids run from 0 to {service.vocab - 1}."
            raise wrong(f"tokens[{i}]", message, "invalid_token_id")
    return service.tokenizer.decode(tokens)
