"""Cors: lets web pages of listed origins call from browsers. Without a list there is nothing of it in any answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diastole.types import UserError

METHODS = b"GET, POST, DELETE, OPTIONS"
EXPOSED = b", ".join(
    [b"x-request-id", b"retry-after"]
    + [f"x-ratelimit-{what}-{of}".encode() for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
)
REMEMBER_SECONDS = b"600"
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")
_HEADERS = re.compile(rb"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
MOST_HEADERS = 4096  # bytes of the list of headers that a page wants to send


class Cors:
    """Pure ASGI middleware. Keys come in headers that pages set themselves, so credentials of browsers are not allowed.

    Args:
        origins: as ``check_origins`` passes them.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self._origins = frozenset(o.encode() for o in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._origins or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin", b"")
        allowed = origin in self._origins
        if allowed and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _preflight(origin, headers.get(b"access-control-request-headers", b""), send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(b"vary", b"Origin")]
                if allowed:
                    more += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        await self.app(scope, receive, send_on)


async def _preflight(origin: bytes, wanted: bytes, send: Send) -> None:
    """What a browser asks before it lets a page send more than a plain form could."""
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", REMEMBER_SECONDS),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    if len(wanted) <= MOST_HEADERS and _HEADERS.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def check_origins(origins: Sequence[str]) -> None:
    """Raises:
    UserError: one of them is not what browsers send as an origin.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            message = (
                f"server.cors_origins: {origin[:100]!r} is no origin; write it as browsers do, such as "
                "'https://chat.example.org' or 'http://localhost:3000', and name each one"
            )
            raise UserError(message, param="server.cors_origins")
