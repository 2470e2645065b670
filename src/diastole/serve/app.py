"""The application: routes, and what surrounds all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from diastole.serve import metrics
from diastole.serve.border import Border
from diastole.serve.cors import Cors
from diastole.serve.errors import ApiError
from diastole.serve.face import Face
from diastole.serve.hosts import Hosts, allowance
from diastole.serve.interface import Backend
from diastole.serve.realtime import Realtime
from diastole.serve.routes import ROUTES
from diastole.serve.sockets import Door
from diastole.serve.streams import Streams
from diastole.serve.tracing import NoTraces, Traces

if TYPE_CHECKING:
    from diastole.config import ServerConfig


def create_app(backend: Backend, config: ServerConfig, traces: Traces | None = None) -> Starlette:
    """The server as an ASGI application. Somebody else starts and stops the backend, and closes the traces.

    ``app.state.face`` has the gate that a shutdown closes, and the keyring that follows its file when it is told to.

    Raises:
        UserError: a setting or the key file is wrong.
    """
    traffic = metrics.Traffic(route.label for route in ROUTES)
    face = Face(backend, config, traffic, traces or NoTraces())
    door = Door(face, config.cors_origins)
    streams, realtime = Streams(door), Realtime(door)
    app = Starlette(
        routes=[
            *(routing.Route(r.path, r.endpoint(face, r.label, r.handler), methods=[r.method]) for r in ROUTES),
            routing.WebSocketRoute("/v1/streams/{model:path}", streams.__call__),
            routing.WebSocketRoute("/v1/realtime", realtime.__call__),
        ],
        middleware=[
            Middleware(Hosts, allows=allowance(config, face.keyring.empty)),
            Middleware(Cors, origins=config.cors_origins),
            Middleware(Border, face=face),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    app.state.face, app.state.streams = face, streams
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer to what no route takes."""
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow", "")
    methods = ", ".join(sorted({*filter(None, allow.split(", ")), "OPTIONS"}))
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": methods})
    if error.status_code == 405:
        message = f"{request.method} is not allowed on this path; {methods} are."
        raise ApiError(405, message, code="method_not_allowed", headers={"allow": methods})
    if error.status_code == 404:
        message = f"There is no path {request.url.path[:100]!r} here. The API's paths begin with /v1/."
        raise ApiError(404, message, code="not_found")
    raise ApiError(error.status_code, str(error.detail))
