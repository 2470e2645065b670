"""Door: TCP connections between the processes of one cluster, which share a secret. Both sides prove that they know it
before anything else is read; nothing is encrypted, so the network between machines must be trusted to be unheard.

    listener -> nonce                              16 bytes
    caller   -> nonce, HMAC(secret, "caller")      16 + 32 bytes, and one byte: what it wants
    listener -> HMAC(secret, "listener")           32 bytes
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from typing import NamedTuple

SECONDS = 5.0  # for the whole of a greeting
NONCE, PROOF = 16, 32  # bytes
SECRET = 32  # bytes of a new secret


class Address(NamedTuple):
    """Where a worker listens."""

    host: str
    port: int


class NotAdmitted(ConnectionError):
    """The other side does not know the secret, or is none of ours."""


def new_secret() -> bytes:
    """For one cluster."""
    return secrets.token_bytes(SECRET)


def call(address: Address, secret: bytes, wish: bytes, seconds: float = SECONDS) -> socket.socket:
    """A connection to a worker.

    Args:
        wish: one byte that says what for.
        seconds: for the connection and the greeting, each.

    Raises:
        OSError: nobody answers there, or not as it should.
    """
    sock = socket.create_connection(address, timeout=seconds)
    try:
        theirs, ours = exactly(sock, NONCE), secrets.token_bytes(NONCE)
        sock.sendall(ours + _proof(secret, b"caller", theirs + ours + wish) + wish)
        if not hmac.compare_digest(exactly(sock, PROOF), _proof(secret, b"listener", ours + theirs)):
            raise NotAdmitted(f"who listens at {address.host}:{address.port} does not know this cluster's secret")
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def answer(sock: socket.socket, secret: bytes, seconds: float = SECONDS) -> bytes:
    """Greet who called; the byte that says what for.

    Raises:
        OSError: it hangs up, takes too long, or does not know the secret.
    """
    sock.settimeout(seconds)
    ours = secrets.token_bytes(NONCE)
    sock.sendall(ours)
    theirs, proof, wish = exactly(sock, NONCE), exactly(sock, PROOF), exactly(sock, 1)
    if not hmac.compare_digest(proof, _proof(secret, b"caller", ours + theirs + wish)):
        raise NotAdmitted("somebody called who does not know this cluster's secret")
    sock.sendall(_proof(secret, b"listener", theirs + ours))
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wish


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the connection ends before.
    """
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


def _proof(secret: bytes, who: bytes, about: bytes) -> bytes:
    return hmac.digest(secret, who + about, hashlib.sha256)
