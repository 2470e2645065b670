"""POST /admin/services/{name}/reload: a service is loaded anew while it and all others go on."""

from __future__ import annotations

from typing import Any

import msgspec

from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.hosts import is_loopback, name_of
from diastole.serve.limits import check_json_type, decode

PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class ReloadReply(msgspec.Struct, tag_field="object", tag="service"):
    name: str
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET  # of texts
    status: str = "reloaded"


async def reload(face: Face, exchange: Exchange) -> None:
    """Load a service anew; the body may hold settings of it that change. It answers once the new one has taken over.

    Raises:
        ApiError: who asks may not, or it cannot be loaded; then the running one goes on.
    """
    require_admin(face, exchange)
    check_json_type(exchange.headers)
    face.check_ready()
    service = face.any(exchange.scope["path_params"]["name"])
    changes = await face.bodies.read(exchange, _changes)
    await face.backend.reload(service.name, changes)
    await exchange.reply_json(200, ReloadReply(service.name, getattr(service, "context", msgspec.UNSET)))


def _changes(body: bytes) -> dict[str, Any]:
    return decode(body, dict[str, Any]) if body else {}


def require_admin(face: Face, exchange: Exchange) -> None:
    """The one place that says who may administer: whose key has the right, or, where there are no keys, who is on this
    machine and comes neither through a proxy nor by a web page.

    Raises:
        ApiError: 403.
    """
    if not face.keyring.empty:
        exchange.key.require("admin")
        return
    peer = exchange.scope.get("client")
    direct = not any(header in exchange.headers for header in PROXY_HEADERS)
    if peer is not None and is_loopback(peer[0]) and direct and is_loopback(name_of(exchange.headers.get("host", ""))):
        return
    message = (
        "Without keys only direct requests from the server's own machine may do that: give a key the right 'admin' in "
        "server.api_key_file."
    )
    raise ApiError(403, message, code="admin_not_allowed")
