"""The console's files: read once at start, and nothing else on the disk can be asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "cache-control": "no-cache",  # a browser asks each time, and is told by the tag that nothing changed
    "content-security-policy": "default-src 'self'; img-src 'self' data:; "  # pictures come within answers
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is sent."""

    body: bytes
    type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> File:
        body = path.read_bytes()
        return cls(body, TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')


class Console:
    """The web page at ``/`` and its parts under ``/console/``; ``paths`` are all that it answers to."""

    INDEX = "index.html"

    def __init__(self, folder: Path) -> None:
        self._parts = {p.name: File.read(p) for p in folder.iterdir() if p.suffix in TYPES}
        self._index = self._parts.pop(self.INDEX)  # its links are relative to the root
        self.paths = frozenset({"/", *(f"/console/{name}" for name in self._parts)})

    async def index(self, face: Face, exchange: Exchange) -> None:
        """The console, a web page."""
        await self._send(exchange, self._index)

    async def part(self, face: Face, exchange: Exchange) -> None:
        """One of the console's files.

        Raises:
            ApiError: 404, no file of the console has this name.
        """
        file = self._parts.get(exchange.scope["path_params"]["name"])
        if file is None:
            raise ApiError(404, "The console has no such file.", code="not_found")
        await self._send(exchange, file)

    async def _send(self, exchange: Exchange, file: File) -> None:
        headers = {**HEADERS, "etag": file.tag}
        known = exchange.headers.get("if-none-match", "")
        if file.tag not in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            await exchange.reply(200, file.body, file.type, headers)
            return
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await exchange.send({"type": "http.response.start", "status": 304, "headers": raw})
        await exchange.send({"type": "http.response.body", "body": b""})


CONSOLE = Console(Path(__file__).parent / "console")
