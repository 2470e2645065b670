"""Border: the outermost layer: who may enter, one shape for every error, a line in the log and a count for each."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from diastole.frontend.types import EngineLost
from diastole.serve.errors import ApiError, Gone, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.static import CONSOLE
from diastole.types import UserError

log = logging.getLogger("diastole.serve")

EXCHANGE = "diastole.exchange"  # key in the scope
OPEN_PATHS = frozenset({"/health", "/ready", *CONSOLE.paths})  # probes have no keys, and the console asks for one
QUIET = ("/health", "/ready", "/metrics", "/engine/trace")  # asked every few seconds
CLIENT_GONE = 499  # in log and counters; sent only to who waits for a request that was cancelled


class Border:
    """Pure ASGI middleware."""

    def __init__(self, app: ASGIApp, face: Face) -> None:
        self.app, self.face, self.traffic = app, face, face.traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.face.gate, self.face.config.send_timeout_seconds)
        scope[EXCHANGE] = exchange
        status = CLIENT_GONE
        self.traffic.open += 1
        try:
            status = await self._answer(exchange)
        finally:
            self.traffic.open -= 1
            self.traffic.count(exchange.route, scope["method"], status)
            self._tell(exchange, status, time.monotonic() - exchange.notes.began)

    def _tell(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Trace and log a request that is over."""
        quiet = exchange.route in QUIET
        if not quiet:
            self.face.traces.record(exchange, status, seconds)
        fields = {
            "id": exchange.id,
            "method": exchange.scope["method"],
            "route": exchange.route or exchange.scope["path"][:100],
            "status": status,
            "seconds": round(seconds, 6),
            **exchange.notes,
        }
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})

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
            except EngineLost:
                log.error("%s failed, as its engine has ended", exchange.id)
                await exchange.fail(self.face.engine_gone("The engine that worked on this"))
            except Gone:
                raise
            except Exception:
                await exchange.fail(self._fault(exchange))
        except Gone as e:
            log.info("%s: %s", exchange.id, e)
            return CLIENT_GONE
        return exchange.status

    def _authorise(self, exchange: Exchange) -> None:
        """Find out whose request it is.

        Raises:
            ApiError: 401.
        """
        if exchange.scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = exchange.headers.get("authorization", "").partition(" ")
        if not scheme and (other := exchange.dialect.key_header):
            scheme, given = "bearer", exchange.headers.get(other, "")
        exchange.key = self.face.keyring.find(given.strip() if scheme.lower() == "bearer" else "")
        address, _ = exchange.scope.get("client") or ("", 0)
        exchange.account = self.face.quotas.account(exchange.key, address)

    def _fault(self, exchange: Exchange) -> ApiError:
        """The answer to a fault of ours. The log has the details, the client an id to ask about."""
        id = secrets.token_hex(6)
        log.exception("fault %s in request %s", id, exchange.id)
        return ApiError(500, f"An internal error happened. Its id in the server's log is {id}.", code="internal_error")
