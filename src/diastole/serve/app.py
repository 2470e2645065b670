"""The application: routes, and what surrounds all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from diastole import __version__
from diastole.serve import metrics
from diastole.serve.admin import reload
from diastole.serve.border import EXCHANGE, Border
from diastole.serve.cancel import cancel, running_requests
from diastole.serve.chat import chat_completions
from diastole.serve.completions import completions
from diastole.serve.cors import Cors
from diastole.serve.embeddings import embeddings
from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.gate import shutting_down
from diastole.serve.hosts import Hosts, allowance
from diastole.serve.interface import Backend, TextService
from diastole.serve.limits import check_json_type
from diastole.serve.messages import count_tokens, messages
from diastole.serve.responses import responses
from diastole.serve.static import CONSOLE
from diastole.serve.tokenization import detokenize, tokenize
from diastole.serve.trace import show_trace
from diastole.serve.tracing import NoTraces, Traces

if TYPE_CHECKING:
    from diastole.config import ServerConfig

Handler = Callable[[Face, Exchange], Awaitable[None]]


def create_app(backend: Backend, config: ServerConfig, traces: Traces | None = None) -> Starlette:
    """The server as an ASGI application. Somebody else starts and stops the backend, and closes the traces.

    ``app.state.face`` has the gate that a shutdown closes, and the keyring that follows its file when it is told to.

    Raises:
        UserError: a setting or the key file is wrong.
    """
    traffic = metrics.Traffic(label(path) for path, _, _ in (*ROUTES, *CONTROLS))
    face = Face(backend, config, traffic, traces or NoTraces())
    app = Starlette(
        routes=[
            *(Route(path, kind(method)(face, path, handler), methods=[method]) for path, method, handler in ROUTES),
            *(Route(path, Endpoint(face, path, handler), methods=[method]) for path, method, handler in CONTROLS),
        ],
        middleware=[
            Middleware(Hosts, allows=allowance(config, face.keyring.empty)),
            Middleware(Cors, origins=config.cors_origins),
            Middleware(Border, face=face),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    app.state.face = face
    return app


class Endpoint:
    """An ASGI application around one handler."""

    def __init__(self, face: Face, path: str, handler: Handler) -> None:
        self.face, self.path, self.handler = face, path, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        exchange.route = label(self.path)
        await self.answer(exchange)

    async def answer(self, exchange: Exchange) -> None:
        await self.handler(self.face, exchange)


class WorkEndpoint(Endpoint):
    """One that takes JSON and makes the engine or a tokenizer work: only so many are inside at once."""

    async def answer(self, exchange: Exchange) -> None:
        with self.face.gate.enter(), exchange.account.enter() as visit:
            exchange.ending = visit.end
            check_json_type(exchange.headers)
            await self.handler(self.face, exchange)


def kind(method: str) -> type[Endpoint]:
    """What posts asks for work."""
    return WorkEndpoint if method == "POST" else Endpoint


def label(path: str) -> str:
    """A route's name in metrics."""
    return path.replace(":path}", "}")


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


async def health(face: Face, exchange: Exchange) -> None:
    """Whether the process should go on living: false only once its engine has died and cannot be restarted."""
    if face.lost:
        face.check_ready()
    await exchange.reply_json(200, {"status": "ok"})


async def ready(face: Face, exchange: Exchange) -> None:
    """Whether requests would be served now."""
    if face.gate.draining:
        raise shutting_down()
    face.check_ready()
    await exchange.reply_json(200, {"status": "ready"})


async def version(face: Face, exchange: Exchange) -> None:
    await exchange.reply_json(200, {"version": __version__})


async def models(face: Face, exchange: Exchange) -> None:
    """Every name that requests may use."""
    face.check_ready()
    cards = [_card(name, service) for name, service in face.backend.services.items()]
    await exchange.reply_json(200, {"object": "list", "data": cards})


async def model(face: Face, exchange: Exchange) -> None:
    face.check_ready()
    name = exchange.scope["path_params"]["id"]
    await exchange.reply_json(200, _card(name, face.service(name)))


def _card(name: str, service: TextService) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "diastole",
        "root": service.name,
        "max_model_len": service.context,
        "embeddings": {
            "dimensions": service.width,
            "kind": "mean of the language model's final hidden states, of length 1; not trained to compare sentences",
        },
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
    }


async def show_metrics(face: Face, exchange: Exchange) -> None:
    text = await metrics.page(face.backend, face.traffic, face.config.vllm_metrics)
    await exchange.reply(200, text, metrics.TYPE)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("/v1/chat/completions", "POST", chat_completions),
    ("/v1/completions", "POST", completions),
    ("/v1/messages", "POST", messages),
    ("/v1/messages/count_tokens", "POST", count_tokens),
    ("/v1/responses", "POST", responses),
    ("/v1/embeddings", "POST", embeddings),
    ("/v1/models", "GET", models),
    ("/v1/models/{id:path}", "GET", model),
    ("/tokenize", "POST", tokenize),
    ("/detokenize", "POST", detokenize),
    ("/health", "GET", health),
    ("/ready", "GET", ready),
    ("/metrics", "GET", show_metrics),
    ("/version", "GET", version),
    ("/engine/trace", "GET", show_trace),
    ("/", "GET", CONSOLE.index),
    ("/console/{name}", "GET", CONSOLE.part),
)

# They must work when the server is full, or is going down, so the gate does not count them.
CONTROLS: tuple[tuple[str, str, Handler], ...] = (
    ("/v1/requests", "GET", running_requests),
    ("/v1/requests/{id}", "DELETE", cancel),
    ("/v1/requests/{id}/cancel", "POST", cancel),
    ("/admin/services/{name:path}/reload", "POST", reload),
)
