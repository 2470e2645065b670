"""GET /engine/trace: what the engine holds and what it did, for the console's live view."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.openai import wrong

ANSWER_SECONDS = 5.0  # for the engine, which may be in a long step
LARGEST = 2**53 - 1  # whole numbers that JavaScript holds


async def show_trace(face: Face, exchange: Exchange) -> None:
    """The steps after number ``since``, and every service's streams and pages now.

    Raises:
        ApiError: since is no step number, or the engine cannot answer.
    """
    face.check_ready()
    since = step_number(exchange.scope["query_string"])
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            view = await face.backend.trace(since)
    except TimeoutError:
        message = f"The engine did not answer within {ANSWER_SECONDS:g} s."
        raise ApiError(503, message, code="overloaded", retry_after=2) from None
    await exchange.reply_json(200, view, {"cache-control": "no-store"})


def step_number(query: bytes) -> int:
    """``since`` of a query string; 0 without it.

    Raises:
        ApiError: it is no number of a step.
    """
    given = query.decode("latin-1")
    try:
        values = parse_qs(given, keep_blank_values=True, max_num_fields=8).get("since", ["0"])
    except ValueError:
        values = []
    if len(values) != 1 or not (values[0].isascii() and values[0].isdecimal()) or len(values[0]) > 16:
        raise _no_number()
    since = int(values[0])
    if since > LARGEST:
        raise _no_number()
    return since


def _no_number() -> ApiError:
    return wrong("since", "since must be the number of a step, a whole number from 0: /engine/trace?since=120.")
