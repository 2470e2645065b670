"""An engine that cannot hear any more ends: nobody shall wait for it."""

from __future__ import annotations

import logging
import socket
import threading

import msgspec
import pytest

from diastole.frontend import wire
from diastole.frontend.worker import hear


def frame(command: wire.Command) -> bytes:
    body = msgspec.msgpack.encode(command)
    return len(body).to_bytes(wire.FRAME_BYTES, "little") + body


def heard(sent: bytes, room: int) -> tuple[list[wire.Command], bool]:
    """What arrives of these bytes where there is room for so many commands, and whether that was the end."""
    ours, theirs = socket.socketpair()
    taken: list[wire.Command] = []
    over = threading.Event()

    def put(command: wire.Command) -> None:
        if len(taken) == room:
            raise MemoryError
        taken.append(command)

    with ours, theirs:
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        hear(theirs, put, over.set)
    return taken, over.is_set()


def test_the_other_end_is_gone() -> None:
    ping, abort = wire.Ping(), wire.Abort("a")
    assert heard(frame(ping) + frame(abort), 9) == ([ping, abort], True)
    assert heard(frame(ping) + frame(abort)[:-1], 9) == ([ping], True)


@pytest.mark.parametrize("noise", [b"\xff" * 8, (3).to_bytes(wire.FRAME_BYTES, "little") + b"abc"])
def test_what_is_no_command_is_the_end(noise: bytes) -> None:
    assert heard(frame(wire.Ping()) + noise, 9) == ([wire.Ping()], True)


def test_without_memory_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert heard(frame(wire.Ping()) * 3, 1) == ([wire.Ping()], True)
    assert "cannot hear" in caplog.text
