"""Links to an engine: in a process of its own (``Process``), or on a thread of this one (``Thread``). Both asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from diastole.config import Config, to_toml
from diastole.frontend import malloc, wire
from diastole.types import UserError


class Link(Protocol):
    """A way to an engine. Replies are given to ``on_reply`` on the event loop; ``on_loss`` is called if it dies."""

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        """Load everything and return the first reply.

        Raises:
            UserError: the engine cannot start, and why.
        """
        ...

    def put(self, command: wire.Command) -> None:
        """Send a command, without waiting."""
        ...

    async def stop(self) -> None:
        """Wait for the end of an engine that was told to quit or killed; one that takes too long is killed."""
        ...

    def kill(self) -> None:
        """End the engine at once, as far as that is possible; also before it was started, and when it has ended."""
        ...

    def alive(self) -> bool: ...

    def processes(self) -> Sequence[int]:
        """Ids of processes of its own that the engine has."""
        ...

    def ending(self) -> str:
        """How it ended, for a log."""
        ...


class Wired:
    """A link whose engine is at the other end of a socket."""

    def __init__(self) -> None:
        self._out: asyncio.StreamWriter | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._reader: asyncio.Task[None] | None = None

    async def open(self, sock: socket.socket) -> asyncio.StreamReader:
        """Speak over this socket, whose it is from now on."""
        sock.setblocking(False)
        incoming, self._out = await asyncio.open_connection(sock=sock, limit=1 << 20)
        return incoming

    async def greeted(
        self, incoming: asyncio.StreamReader, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]
    ) -> wire.Ready:
        """Wait until the engine is ready, and listen to it from then on.

        Raises:
            UserError: it cannot start, and why.
            EOFError: it is gone.
        """
        decode = msgspec.msgpack.Decoder(wire.Reply).decode
        try:
            first = decode(await _frame(incoming))
        except ConnectionError as e:
            raise EOFError(str(e)) from None
        if isinstance(first, wire.Failed):
            raise UserError(first.message, param=first.param)
        if not isinstance(first, wire.Ready):
            raise UserError(f"the engine process said {type(first).__name__} before it was ready")
        self._reader = asyncio.create_task(self._read(incoming, decode, on_reply, on_loss))
        return first

    @staticmethod
    async def _read(
        incoming: asyncio.StreamReader,
        decode: Callable[[bytes], wire.Reply],
        on_reply: Callable[[wire.Reply], None],
        on_loss: Callable[[], None],
    ) -> None:
        try:
            with contextlib.suppress(EOFError, ConnectionError):  # so it ends; the supervisor says how in the log
                while True:
                    on_reply(decode(await _frame(incoming)))
        finally:
            on_loss()

    def put(self, command: wire.Command) -> None:
        """Send a command, without waiting."""
        self.write(self._encode(command))

    def write(self, body: bytes) -> None:
        """Send a frame."""
        assert self._out is not None  # nothing is sent before start()
        if not self._out.is_closing():  # else it is lost, and who reads tells so in a moment
            self._out.write(len(body).to_bytes(wire.FRAME_BYTES, "little") + body)

    def hang_up(self) -> None:
        """Speak no more."""
        if self._out is not None:
            self._out.close()


class Process(Wired):
    """An engine in its own process, so that neither side's Python holds up the other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._child: subprocess.Popen[bytes] | None = None

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-m", "diastole.frontend.worker", str(fd)]
            self._child = subprocess.Popen(
                command, pass_fds=(fd,), stdin=subprocess.DEVNULL, env={**malloc.ENVIRONMENT, **os.environ}
            )
        incoming = await self.open(ours)
        self.write(to_toml(self.config).encode())
        try:
            return await self.greeted(incoming, on_reply, on_loss)
        except EOFError:
            await asyncio.to_thread(self._child.wait)
            raise UserError(f"{self.ending()} before it was ready") from None
        except asyncio.CancelledError:
            self.kill()  # it would only notice after loading
            raise

    async def stop(self) -> None:
        if self._child is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._child.wait, 5)
        if self._child.poll() is None:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)
        self.hang_up()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def processes(self) -> Sequence[int]:
        return [] if self._child is None else [self._child.pid]

    def ending(self) -> str:
        return f"the engine process ended {how_it_ended(self._child)}"


def how_it_ended(child: subprocess.Popen[bytes] | None) -> str:
    """In words for a log."""
    code = None if child is None else child.poll()
    return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"


async def _frame(incoming: asyncio.StreamReader) -> bytes:
    try:
        size = int.from_bytes(await incoming.readexactly(wire.FRAME_BYTES), "little")
        if size > wire.LARGEST_FRAME:
            raise EOFError(f"a frame of {size} bytes is none of ours")
        return await incoming.readexactly(size)
    except asyncio.IncompleteReadError as e:
        raise EOFError("the engine process is gone") from e


class Thread:
    """An engine on a thread of this process: for notebooks, scripts and tests."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._thread: threading.Thread | None = None

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        from diastole.frontend.assembly import build_engine, load_service, slos
        from diastole.frontend.host import EngineHost

        loop = asyncio.get_running_loop()
        engine, cards, kernels = await asyncio.to_thread(build_engine, self.config)
        self._host = EngineHost(engine, lambda r: _call(loop, on_reply, r), slos(self.config), load_service)

        def run() -> None:
            try:
                self._host.run()
            finally:
                _call(loop, lambda _: on_loss(), None)

        self._thread = threading.Thread(target=run, name="diastole-engine", daemon=True)
        self._thread.start()
        return wire.Ready(cards, kernels)

    def put(self, command: wire.Command) -> None:
        self._host.put(command)

    async def stop(self) -> None:
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5)

    def kill(self) -> None:
        """Threads cannot be killed: it is told to quit, and does so after its step."""
        if self.alive():
            self._host.put(wire.Quit(now=True))

    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def processes(self) -> Sequence[int]:
        return []

    def ending(self) -> str:
        return "the engine's thread ended"


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(function, value)
