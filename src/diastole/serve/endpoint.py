"""Endpoints: ASGI applications, each around one handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from diastole.serve.border import EXCHANGE
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.limits import check_json_type

Handler = Callable[[Face, Exchange], Awaitable[None]]


class Endpoint:
    """One that works also when the server is full or going down.

    Args:
        label: its route's name in metrics.
    """

    STATUSES: tuple[int, ...] = (400, 401, 408, 431, 500)  # of errors that happen around the handler

    def __init__(self, face: Face, label: str, handler: Handler) -> None:
        self.face, self.label, self.handler = face, label, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        exchange.route = self.label
        await self.answer(exchange)

    async def answer(self, exchange: Exchange) -> None:
        await self.handler(self.face, exchange)


class WorkEndpoint(Endpoint):
    """One that takes JSON and makes the engine or a tokenizer work: only so many are inside at once."""

    STATUSES = (*Endpoint.STATUSES, 404, 413, 415, 429, 503)

    async def answer(self, exchange: Exchange) -> None:
        self.face.memory.check()
        with self.face.gate.enter(), exchange.account.enter() as visit:
            exchange.ending = visit.end
            check_json_type(exchange.headers)
            await self.handler(self.face, exchange)
