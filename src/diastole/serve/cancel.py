"""GET /v1/requests, DELETE /v1/requests/{id} and POST /v1/requests/{id}/cancel: what runs, and ending it."""

from __future__ import annotations

import msgspec

from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face


class RunningReply(msgspec.Struct, tag_field="object", tag="request"):
    """One running request."""

    id: str
    model: str
    created: int
    age_seconds: float
    prompt_tokens: int  # 0 until the prompt is absorbed
    completion_tokens: int


class RunningList(msgspec.Struct, tag_field="object", tag="list"):
    data: list[RunningReply]


class CancelReply(msgspec.Struct, tag_field="object", tag="request"):
    id: str
    status: str = "cancelled"


async def running_requests(face: Face, exchange: Exchange) -> None:
    """The asking key's requests, oldest first."""
    data = []
    for work, age in face.running.of(exchange.key.digest):
        usage = work.usage()
        told = (work.id, work.model, work.created, round(age, 3), usage.prompt_tokens, usage.completion_tokens)
        data.append(RunningReply(*told))
    await exchange.reply_json(200, RunningList(data))


async def cancel(face: Face, exchange: Exchange) -> None:
    """End a request of the asking key. Its reader is told ``request_cancelled``.

    Raises:
        ApiError: 404, also for requests of other keys and those that are over.
    """
    id = exchange.scope["path_params"]["id"]
    whole = face.running.cancel(id, exchange.key.digest)
    if whole is None:
        message = f"No request with id {id[:100]!r} is running. GET /v1/requests lists yours."
        raise ApiError(404, message, param="id", code="request_not_found")
    await exchange.reply_json(200, CancelReply(whole))
