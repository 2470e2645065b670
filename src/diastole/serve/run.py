"""Running the server: bind, load, serve, and go down in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from diastole import __version__
from diastole.frontend import logs
from diastole.serve.app import create_app
from diastole.serve.face import Face
from diastole.serve.interface import Backend
from diastole.serve.protocol import BoundedProtocol
from diastole.serve.tracing import traces_of
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.config import ServerConfig

log = logging.getLogger("diastole.serve")

LAST_SECONDS = 3.0  # for aborted requests to say so, and for connections to close
BACKLOG = 1024
LARGEST_PIECE = 4 << 20  # bytes of one message of a live stream
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELOAD_SIGNALS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """One server on one port, bound at once: ``port`` is known before anything is loaded.

    Args:
        say: prints the banner.

    Raises:
        UserError: the address cannot be bound, a setting or the key file is wrong, or traces cannot be sent.
    """

    def __init__(self, backend: Backend, config: ServerConfig, say: Callable[[str], None] = print) -> None:
        self.backend, self.config, self._say = backend, config, say
        self.traces = traces_of(config)
        app = create_app(backend, config, self.traces)
        face: Face = app.state.face
        self._socket = bind(config.host, config.port)
        self.port: int = self._socket.getsockname()[1]
        self.gate, self._keyring, self._memory = face.gate, face.keyring, face.memory
        self._stopping = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="websockets-sansio",
                ws_max_size=LARGEST_PIECE,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(LAST_SECONDS),
            )
        )

    def stop(self) -> None:
        """As a signal does: the first time drain, the second time abort. On the event loop's thread only."""
        if self._stopping.is_set():
            self.gate.abort()
        self._stopping.set()
        self.gate.draining = True

    async def run(self, signals: bool = False) -> None:
        """Serve until stopped. While the model loads, requests are told so.

        Args:
            signals: SIGTERM and SIGINT stop the server, SIGHUP has every service loaded anew.

        Raises:
            UserError: the backend cannot start.
        """
        loop = asyncio.get_running_loop()
        handlers = {**dict.fromkeys(SIGNALS, self.stop), **dict.fromkeys(RELOAD_SIGNALS, self._begin_reload)}
        for number, handler in handlers.items() if signals else ():
            loop.add_signal_handler(number, handler)
        http = asyncio.create_task(self._uvicorn.serve(sockets=[self._socket]))
        loading = asyncio.create_task(self.backend.start())
        stopping = asyncio.create_task(self._stopping.wait())
        watching = [asyncio.create_task(self._keyring.watch()), asyncio.create_task(self._memory.watch())]
        try:
            await asyncio.wait([http, loading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._say(self._banner())
                await asyncio.wait([http, stopping], return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            self.gate.abort()
            for task in (loading, stopping, *watching):
                task.cancel()
            await asyncio.gather(loading, stopping, *watching, return_exceptions=True)
            self._uvicorn.should_exit = True
            await http
            await asyncio.gather(self._end_backend(), asyncio.to_thread(self.traces.close))
            for number in handlers if signals else ():
                loop.remove_signal_handler(number)

    def _begin_reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_all())

    async def _reload_all(self) -> None:
        backend = self.backend
        texts, live = {s.name for s in backend.services.values()}, {s.name for s in backend.live.values()}
        for name in sorted(texts | live | {s.name for s in backend.pictures.values()}):
            try:
                await self.backend.reload(name, {})
                log.info("%s was loaded anew", name)
            except Exception as e:  # the running one goes on, and so do the others
                log.error("%s could not be loaded anew: %s", name, e)

    async def _drain(self) -> None:
        if self.gate.inside:
            log.warning("stopping: %d requests may take %g s more", self.gate.inside, self.config.drain_seconds)
        if not await self.gate.empty(self.config.drain_seconds):
            log.warning("aborting %d requests", self.gate.inside)
            self.gate.abort()
            await self.gate.empty(LAST_SECONDS)

    async def _end_backend(self) -> None:
        try:
            await self.backend.stop(0)
        except Exception as e:  # it may never have come up; there is nothing left to save
            log.warning("the backend did not stop cleanly: %r", e)

    def _banner(self) -> str:
        host = self.config.host if self.config.host not in ("0.0.0.0", "::") else "localhost"
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        texts, live, pictures = self.backend.services, self.backend.live, self.backend.pictures
        tries = []
        for model in list(texts)[:1]:
            tries.append(
                f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                f'        -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\''
            )
        tries += [f"diastole stream {model} FILE --url {url}" for model in list(live)[:1]]
        for model, service in list(pictures.items())[:1]:
            shown = service.card.labels[0] if service.card.labels else ""
            tries.append(
                f"curl {url}/v1/images/generations -H 'Content-Type: application/json' \\\n"
                f'        -d \'{{"model": "{model}", "prompt": "{shown}"}}\''
            )
        return "\n".join(
            [
                f"Diastole {__version__} is ready at {url}/v1 with {', '.join(sorted({*texts, *live, *pictures}))}.",
                f"Open  {url}/ in a browser for the console.",
                *(f"Try:  {line}" for line in tries),
                "Stop it with Ctrl-C.",
            ]
        )


def serve(backend: Backend, config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second signal aborts what still runs.

    Raises:
        UserError: the address cannot be bound, or the backend cannot start.
    """

    async def main() -> None:
        await Server(backend, config, BANNERS[config.log_format]).run(signals=True)

    logs.start(config)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _print_banner(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _log_banner(text: str) -> None:
    log.info("%s", text.partition("\n")[0])


BANNERS: Mapping[str, Callable[[str], None]] = {"text": _print_banner, "json": _log_banner}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: there is no such address here, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as e:
        raise UserError(f"host {host!r} is no address: {e.strerror}", param="server.host") from None
    family, kind, protocol, _, address = found[0]
    # The protocol is named, since the event loop switches Nagle's delay off only where it reads TCP here.
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as e:
        listening.close()
        message = f"cannot listen on {host} port {port}: {e.strerror}; choose another port or host"
        raise UserError(message, param="server.port") from None
    return listening


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    return uvloop.new_event_loop
