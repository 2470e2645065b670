"""All routes of the server."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from diastole.engine.trace import View
from diastole.serve import metrics, static
from diastole.serve.admin import ReloadReply, reload
from diastole.serve.anthropic import CountRequest, MessagesRequest
from diastole.serve.blocks import MessageReply, MessagesEvent
from diastole.serve.cancel import CancelReply, RunningList, cancel, running_requests
from diastole.serve.chat import chat_completions
from diastole.serve.completions import completions
from diastole.serve.embeddings import EmbeddingReply, EmbeddingRequest, embeddings
from diastole.serve.endpoint import WorkEndpoint
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.images import ImageEvent, ImagesReply, ImagesRequest, images
from diastole.serve.messages import CountReply, count_tokens, messages
from diastole.serve.openai import ChatRequest, CompletionRequest
from diastole.serve.openapi import document
from diastole.serve.replies import ChatChunk, ChatReply, CompletionReply
from diastole.serve.response_shape import ResponseReply, ResponsesEvent
from diastole.serve.responses import ResponsesRequest, responses
from diastole.serve.route import EVENTS, JSON, PROMISES, WISHES, Parameter, Route
from diastole.serve.static import CONSOLE
from diastole.serve.status import (
    AnyModelCard,
    ModelList,
    StatusReply,
    VersionReply,
    health,
    model,
    models,
    ready,
    show_metrics,
    version,
)
from diastole.serve.tokenization import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    detokenize,
    tokenize,
)
from diastole.serve.trace import LARGEST, show_trace
from diastole.serve.transcriptions import TranscriptEvent, Transcription, transcriptions
from diastole.serve.upload import UploadEndpoint


async def describe(face: Face, exchange: Exchange) -> None:
    """This document."""
    await exchange.reply(200, await asyncio.to_thread(_document, face.keyring.empty))


@cache
def _document(open_: bool) -> bytes:
    return document(ROUTES, open_)


# What every generation may be answered with, besides what any work may be.
_REFUSED = (403, 499, 504)
_SINCE = Parameter("since", "query", {"type": "integer", "minimum": 0, "maximum": LARGEST})

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/chat/completions", chat_completions, {JSON: ChatReply, EVENTS: ChatChunk}, ChatRequest,
        WorkEndpoint, _REFUSED, WISHES,
    ),
    Route(
        "POST", "/v1/completions", completions, {JSON: CompletionReply, EVENTS: CompletionReply}, CompletionRequest,
        WorkEndpoint, _REFUSED, WISHES,
    ),
    Route(
        "POST", "/v1/messages", messages, {JSON: MessageReply, EVENTS: MessagesEvent}, MessagesRequest,
        WorkEndpoint, _REFUSED, WISHES,
    ),
    Route("POST", "/v1/messages/count_tokens", count_tokens, {JSON: CountReply}, CountRequest, WorkEndpoint),
    Route(
        "POST", "/v1/responses", responses, {JSON: ResponseReply, EVENTS: ResponsesEvent}, ResponsesRequest,
        WorkEndpoint, _REFUSED, WISHES,
    ),
    Route(
        "POST", "/v1/embeddings", embeddings, {JSON: EmbeddingReply}, EmbeddingRequest,
        WorkEndpoint, _REFUSED, PROMISES,
    ),
    Route(
        "POST", "/v1/audio/transcriptions", transcriptions,
        {JSON: Transcription, EVENTS: TranscriptEvent, "text/plain": str}, None, UploadEndpoint,
    ),
    Route(
        "POST", "/v1/images/generations", images, {JSON: ImagesReply, EVENTS: ImageEvent}, ImagesRequest,
        WorkEndpoint, _REFUSED, PROMISES,
    ),
    Route("GET", "/v1/models", models, {JSON: ModelList}, statuses=(503,)),
    Route("GET", "/v1/models/{id:path}", model, {JSON: AnyModelCard}, statuses=(404, 503)),
    Route("GET", "/v1/requests", running_requests, {JSON: RunningList}),
    Route("DELETE", "/v1/requests/{id}", cancel, {JSON: CancelReply}, statuses=(404,)),
    Route("POST", "/v1/requests/{id}/cancel", cancel, {JSON: CancelReply}, statuses=(404,)),
    Route("POST", "/tokenize", tokenize, {JSON: TokenizeReply}, TokenizeRequest, WorkEndpoint),
    Route("POST", "/detokenize", detokenize, {JSON: DetokenizeReply}, DetokenizeRequest, WorkEndpoint),
    Route(
        "POST", "/admin/services/{name:path}/reload", reload, {JSON: ReloadReply}, dict[str, Any] | None,
        statuses=(403, 404, 409, 413, 415, 503),
    ),
    Route("GET", "/health", health, {JSON: StatusReply}, statuses=(503,)),
    Route("GET", "/ready", ready, {JSON: StatusReply}, statuses=(503,)),
    Route("GET", "/version", version, {JSON: VersionReply}),
    Route("GET", "/metrics", show_metrics, {metrics.TYPE: str}),
    Route("GET", "/engine/trace", show_trace, {JSON: View}, statuses=(503,), parameters=(_SINCE,)),
    Route("GET", "/openapi.json", describe, {JSON: dict[str, Any]}),
    Route("GET", "/", CONSOLE.index, {static.TYPES[".html"]: str}),
    Route("GET", "/console/{name}", CONSOLE.part, dict.fromkeys(static.TYPES.values(), str), statuses=(404,)),
)  # fmt: skip
