"""Hosts: by which names the server may be called.

A web page elsewhere can have its own name point to 127.0.0.1 and then read what a server there answers, as if it were
its own. The browser still says by which name it calls.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from diastole.serve.dialect import dialect_of
from diastole.serve.errors import ApiError
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.config import ServerConfig

log = logging.getLogger("diastole.serve")

_NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
_HEADER = re.compile(rf"({_NAME.pattern})(:\d{{0,5}})?")


class Hosts:
    """Pure ASGI middleware.

    Args:
        allows: whether the server answers to a name.
    """

    def __init__(self, app: ASGIApp, allows: Callable[[str], bool]) -> None:
        self.app, self._allows = app, allows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            for name, value in scope["headers"]:  # of no host, which no browser leaves out, there is nothing to say
                if name == b"host" and not self._allows(name_of(value.decode("latin-1"))):
                    if scope["type"] == "websocket":
                        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
                    else:
                        await _refuse(scope["path"], value.decode("latin-1"), send)
                    return
        await self.app(scope, receive, send)


async def _refuse(path: str, host: str, send: Send) -> None:
    log.info("a request for host %.100r was refused", host)
    message = (
        f"This server does not answer to the name {host[:100]!r}. If it should, add it to the setting "
        "server.allowed_hosts, or set server.api_key."
    )
    body = dialect_of(path).error(ApiError(421, message, code="host_not_allowed"))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what may follow is not read
    ]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def allowance(config: ServerConfig, open_to_all: bool) -> Callable[[str], bool]:
    """Which names the server answers to: those that are set, and those of this machine. Where nothing is set a server
    that other machines reach, or that asks for keys, has all.

    Args:
        open_to_all: whether nobody needs a key.

    Raises:
        UserError: one of the settings is no host.
    """
    for host in config.allowed_hosts:
        if not _NAME.fullmatch(host):
            message = (
                f"server.allowed_hosts: {host[:100]!r} is no host; write a name or an address in small letters, "
                "without scheme and port, such as 'chat.example.org' or '[::1]'"
            )
            raise UserError(message, param="server.allowed_hosts")
    if not config.allowed_hosts and not (open_to_all and is_loopback(config.host)):
        return lambda name: True
    names = frozenset(map(name_of, config.allowed_hosts))
    return lambda name: name in names or is_loopback(name)


def name_of(host: str) -> str:
    """A host header without its port, in small letters and without brackets; "" if it is none."""
    parts = _HEADER.fullmatch(host.lower())
    return "" if parts is None else parts[1].strip("[]").removesuffix(".")


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine itself."""
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
