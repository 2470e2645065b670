"""Border: the outermost layer: who may enter, one shape for every error, a line in the log and a count for each."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from diastole.serve.errors import ApiError, Gone, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.static import CONSOLE
from diastole.types import UserError

log = logging.getLogger("diastole.serve")

EXCHANGE = "diastole.exchange"  # key in the scope
OPEN_PATHS = frozenset({"/health", "/ready", *CONSOLE.paths})  # probes have no keys, and the console asks for one
QUIET = ("/health", "/ready", "/metrics", "/engine/trace")  # asked every few seconds
CLIENT_GONE = 499  # in log and counters only: nobody was there to be told


class Border:
    """Pure ASGI middleware."""

    def __init__(self, app: ASGIApp, face: Face) -> None:
        self.app, self.face, self.traffic = app, face, face.traffic
        self._keys = [_digest(k) for k in face.config.api_key]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.face.gate, self.face.config.send_timeout_seconds)
        scope[EXCHANGE] = exchange
        began = time.monotonic()
        status = CLIENT_GONE
        self.traffic.open += 1
        try:
            status = await self._answer(exchange)
        finally:
            self.traffic.open -= 1
            self.traffic.count(exchange.route, scope["method"], status)
            level = logging.DEBUG if exchange.route in QUIET else logging.INFO
            took = time.monotonic() - began
            where = exchange.route or repr(scope["path"][:100])
            log.log(level, "%s %s %s %d %.3f s", exchange.id, scope["method"], where, status, took)

    async def _answer(self, exchange: Exchange) -> int:
        """Answer, and say with what status."""
        try:
            try:
                self._authorise(exchange)
                await self.app(exchange.scope, exchange.receive, exchange.send)
            except ApiError as e:
                await exchange.fail(e)
            except UserError as e:
                await exchange.fail(of_user_error(e))
            except Gone:
                raise
            except Exception:
                await exchange.fail(self._fault(exchange))
        except Gone as e:
            log.info("%s: %s", exchange.id, e)
            return CLIENT_GONE
        return exchange.status

    def _authorise(self, exchange: Exchange) -> None:
        if not self._keys or exchange.scope["path"] in OPEN_PATHS:
            return
        scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        if not any_equal(given, self._keys):
            raise ApiError(
                401,
                "A valid API key is required: send the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _fault(self, exchange: Exchange) -> ApiError:
        """The answer to a fault of ours. The log has the details, the client an id to ask about."""
        if self.face.lost:
            log.error("%s failed, as the engine has ended", exchange.id)
            return ApiError(503, "The engine has ended.", code="model_unavailable", retry_after=30)
        id = secrets.token_hex(6)
        log.exception("fault %s in request %s", id, exchange.id)
        return ApiError(500, f"An internal error happened. Its id in the server's log is {id}.", code="internal_error")


def any_equal(given: bytes, keys: Sequence[bytes]) -> bool:
    """Whether one of the keys is given, in a time that depends on neither."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(given, key)
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
