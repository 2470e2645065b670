"""States on the way: packed state of streams over a connection, raw bytes behind a header that says what comes.

The receiver names the most bytes that it takes, and believes no size before it has looked at it.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from diastole.cluster.door import exactly
from diastole.state.lease import Blob
from diastole.types import Array

LENGTH = 8  # bytes of a length, little endian
LARGEST_HEADER = 1 << 16
PIECE = 1 << 18  # bytes sent at once
DTYPES = frozenset({"uint8", "int8", "uint16", "int16", "int32", "int64", "float32"})


class Part(msgspec.Struct):
    """An array."""

    name: str
    dtype: str
    shape: list[int]


class Head(msgspec.Struct):
    """A blob."""

    name: str
    layout: str
    units: int
    parts: list[Part]


class TokenBucket:
    """A link of so many bytes per second: for measurements of slow networks on a fast one.

    Args:
        rate: bytes per second.
        burst: bytes that pass at once.
    """

    def __init__(
        self,
        rate: float,
        burst: float = PIECE,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.rate, self.burst, self._now, self._sleep = rate, burst, now, sleep
        self._left, self._at = burst, now()

    def take(self, size: int) -> None:
        """Wait until so many bytes may pass."""
        now = self._now()
        self._left = min(self._left + (now - self._at) * self.rate, self.burst) - size
        self._at = now
        if self._left < 0:
            self._sleep(-self._left / self.rate)


def send(sock: socket.socket, state: Mapping[str, Blob], link: TokenBucket | None = None) -> None:
    """Send the state of a stream; an empty one says that there is none."""
    heads = [
        Head(name, b.layout, b.units, [Part(k, a.dtype.name, list(a.shape)) for k, a in b.data.items()])
        for name, b in state.items()
    ]
    header = msgspec.msgpack.encode(heads)
    sock.sendall(len(header).to_bytes(LENGTH, "little") + header)
    for blob in state.values():
        for array in blob.data.values():
            bytes_of = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            for at in range(0, len(bytes_of), PIECE):
                piece = bytes_of[at : at + PIECE]
                if link is not None:
                    link.take(len(piece))
                sock.sendall(piece)


def receive(sock: socket.socket, most: int) -> Mapping[str, Blob]:
    """What ``send`` sent, at most ``most`` bytes of it.

    Raises:
        ConnectionError: the connection ends before all is there.
        ValueError: what comes is too large or no state.
    """
    size = int.from_bytes(exactly(sock, LENGTH), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes is none of ours")
    heads = msgspec.msgpack.decode(exactly(sock, size), type=list[Head])
    total = sum(_size(part) for head in heads for part in head.parts)
    if total > most:
        raise ValueError(f"the state has {total} bytes, and there is room for {most}")
    state = {}
    for head in heads:
        data = {part.name: _array(sock, part) for part in head.parts}
        state[head.name] = Blob(head.layout, head.units, data)
    return state


def _size(part: Part) -> int:
    if part.dtype not in DTYPES or len(part.shape) > 8 or any(n < 0 for n in part.shape):
        raise ValueError(f"an array of {part.dtype:.20} {part.shape[:9]} is none of ours")
    return math.prod(part.shape) * np.dtype(part.dtype).itemsize


def _array(sock: socket.socket, part: Part) -> Array:
    array: Array = np.empty(part.shape, part.dtype)
    if not array.size:
        return array
    into = array.reshape(-1).view(np.uint8).data
    while into:
        came = sock.recv_into(into)
        if not came:
            raise ConnectionError("the connection was closed")
        into = into[came:]
    return array
