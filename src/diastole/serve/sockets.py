"""Sockets: what all WebSocket endpoints share: who may connect, by which key, and how a failure is told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect

from diastole.frontend.types import EngineLost, RequestEnded
from diastole.serve.errors import ApiError
from diastole.serve.face import Face
from diastole.serve.keys import Key
from diastole.types import UserError

log = logging.getLogger("diastole.serve")

POLICY, GONE, FAULT = 1008, 1001, 1011  # codes of a close

Refuse = Callable[[WebSocket, UserError], Awaitable[None]]


class Door:
    """Who may come in.

    Args:
        origins: of web pages that may connect, beside the server's own.
    """

    def __init__(self, face: Face, origins: Sequence[str]) -> None:
        self.face, self._origins = face, frozenset(origins)

    async def pass_on(
        self, socket: WebSocket, work: Callable[[WebSocket], Awaitable[None]], refuse: Refuse, protocol: str = ""
    ) -> None:
        """Accept a connection and work on it; whatever fails is told by ``refuse``, or ends the connection."""
        if not self._welcome(socket):
            await socket.close(POLICY)  # before it is accepted: 403
            return
        await socket.accept(protocol if protocol in socket.scope.get("subprotocols", ()) else None)
        try:
            await work(socket)
        except UserError as e:
            await refuse(socket, e)
        except ApiError as e:
            await refuse(socket, UserError(e.message, param=e.param, code=e.code or "refused"))
        except (EngineLost, RequestEnded) as e:
            await refuse(socket, UserError(str(e), code="engine_lost"))
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("a WebSocket's work failed")
            with contextlib.suppress(Exception):
                await socket.close(FAULT)

    def _welcome(self, socket: WebSocket) -> bool:
        """Browsers let any page connect to anything, and say where the page is from."""
        origin = socket.headers.get("origin")
        return origin is None or origin in self._origins or urlsplit(origin).netloc == socket.headers.get("host")

    def key(self, socket: WebSocket, shown: str = "") -> Key:
        """By the header, or what is shown otherwise.

        Raises:
            ApiError: 401, it is none of ours.
        """
        scheme, _, given = socket.headers.get("authorization", "").partition(" ")
        return self.face.keyring.find(given.strip() if scheme.lower() == "bearer" else shown)
