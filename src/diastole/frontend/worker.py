"""The engine process: ``python -m diastole.frontend.worker FD``, started by ``frontend.link`` with one socket.

First frame in: the configuration as TOML. Then commands in, replies out, each a length-prefixed msgpack struct. The
process ends when told to quit, or when the other end of the socket is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import msgspec

from diastole.frontend import logs, wire
from diastole.frontend.calm import calm, stirring
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.frontend.host import EngineHost

log = logging.getLogger("diastole.frontend")


def main(fd: int) -> None:
    """Serve on an inherited socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front end decides when we stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with socket.socket(fileno=fd) as link:
        encode = msgspec.msgpack.Encoder().encode

        def send(reply: wire.Reply) -> None:
            body = encode(reply)
            link.sendall(len(body).to_bytes(wire.FRAME_BYTES, "little") + body)

        try:
            toml = read_frame(link)
            host = _build(toml.decode(), send)
        except UserError as e:
            send(wire.Failed(e.message, e.param))
            return
        threading.Thread(target=hear, args=(link, host.put, lambda: os._exit(0)), daemon=True).start()
        with calm(), contextlib.suppress(BrokenPipeError, ConnectionResetError):
            host.run()
            host.engine.close()


def _build(toml: str, send: Callable[[wire.Reply], None]) -> EngineHost:
    from diastole.config import from_toml
    from diastole.frontend.assembly import build_engine, cost_folder, load_service, slos
    from diastole.frontend.host import EngineHost

    config = from_toml(toml)
    logs.start(config.server)
    engine, cards, kernels = build_engine(config, cost_folder(config))
    send(wire.Ready(cards, kernels))
    return EngineHost(engine, send, slos(config), stirring(load_service))


def hear(link: socket.socket, put: Callable[[wire.Command], None], die: Callable[[], None]) -> None:
    """Hand on commands until the other end is gone, then ``die``: nobody is left to answer.

    So it is when this thread cannot go on, for want of memory, say: an engine that does not hear keeps all waiting,
    one that has ended is replaced.
    """
    decode = msgspec.msgpack.Decoder(wire.Command).decode
    try:
        while True:
            put(decode(read_frame(link)))
    except (EOFError, OSError, msgspec.MsgspecError):
        pass
    except Exception:
        with contextlib.suppress(Exception):
            log.exception("an engine that cannot hear any more ends")
    die()


def read_frame(link: socket.socket) -> bytes:
    """One frame.

    Raises:
        EOFError: the other end is gone, or what came is no frame.
    """
    size = int.from_bytes(_exactly(link, wire.FRAME_BYTES), "little")
    if size > wire.LARGEST_FRAME:
        raise EOFError(f"a frame of {size} bytes is none of ours")
    return _exactly(link, size)


def _exactly(link: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = link.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the socket was closed")
        parts += part
    return bytes(parts)


def run_process(life: Callable[[], None]) -> NoReturn:
    """All that a process does. It ends at once: an interpreter that takes itself apart complains of native objects."""
    code = 0
    try:
        life()
    except Exception:
        code = 1
        with contextlib.suppress(Exception):
            log.exception("this engine ends")
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    run_process(lambda: main(int(sys.argv[1])))
