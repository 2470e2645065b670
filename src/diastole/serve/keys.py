"""Keys: who a request comes from, how much he may have, and what else he may do.

A key file has a line for each key, and no key itself: ``name:sha256:HEX``, then if wanted ``:`` and any of ``rpm=60``,
``tpm=10000``, ``concurrent=4`` and rights such as ``admin``, separated by commas. Lines that begin with # are comments.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diastole.serve.errors import ApiError
from diastole.types import UserError

log = logging.getLogger("diastole.serve")

RIGHTS = ("admin",)
WATCH_SECONDS = 1.0  # between looks at the key file
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
NAMES = "1 to 64 letters, digits, '.', '_' or '-'"
_LIMITS = {"rpm": "requests", "tpm": "tokens", "concurrent": "concurrent"}


class Limits(NamedTuple):
    """Requests per minute, tokens per minute, requests at once. 0: no limit; None: as the server's settings say."""

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    def over(self, usual: Limits) -> Limits:
        """These limits, with the usual ones where nothing is said."""
        return Limits(*(u if own is None else own for own, u in zip(self, usual, strict=True)))


UNSAID = Limits()


@dataclass(frozen=True, slots=True)
class Key:
    """Whoever shows it is called ``name``; empty for everybody on a server without keys."""

    name: str
    digest: bytes  # SHA-256
    limits: Limits = UNSAID
    rights: frozenset[str] = frozenset()

    def require(self, right: str) -> None:
        """Raises:
        ApiError: 403, the key lacks this right.
        """
        if right not in self.rights:
            message = f"This needs a key with the right {right!r}; rights are given in the server's key file."
            raise ApiError(403, message, code="missing_right")


NOBODY = Key("", b"")


class Keyring:
    """All keys of a server. It follows changes of its file while ``watch`` runs.

    Args:
        plain: keys themselves, from the settings.
        path: of a key file; empty: there is none.

    Raises:
        UserError: the file cannot be read, one of its lines is wrong, or a key is given twice.
    """

    def __init__(self, plain: Sequence[str], path: str) -> None:
        if not all(plain):
            raise UserError("server.api_key holds an empty key: leave it out", param="server.api_key")
        self._plain = [Key(f"api-key-{i}", digest(key)) for i, key in enumerate(plain, 1)]
        self._path = Path(path) if path else None
        self._stamp: tuple[int, ...] = ()
        self._keys = _distinct(self._plain)
        self.read()

    @property
    def empty(self) -> bool:
        """Whether the server has no keys, so that everybody may come in. A key file without keys lets nobody in."""
        return self._path is None and not self._plain

    def find(self, given: str) -> Key:
        """The key that is given, found in a time that does not depend on which it is.

        Raises:
            ApiError: 401, it is none of ours.
        """
        if self.empty:
            return NOBODY
        shown = digest(given)
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(shown, key.digest):
                found = key
        if found is None:
            raise ApiError(
                401,
                "A valid API key is required: send the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found

    def read(self) -> bool:
        """Read the file if it has changed; whether it had.

        Raises:
            UserError: it cannot be read or is wrong. The keys stay as they were.
        """
        if self._path is None:
            return False
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            why = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror
            raise UserError(f"cannot read the key file {self._path}: {why}", param="server.api_key_file") from None
        self._keys = _distinct([*self._plain, *parse(text, str(self._path))])
        return True

    async def watch(self) -> None:
        """Take in changes of the file, for ever. A file that is wrong changes nothing and is told in the log."""
        told = ""
        while self._path is not None:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if await asyncio.to_thread(self.read):
                    log.info("the key file has changed: there are %d keys now", len(self._keys))
                    told = ""
            except UserError as e:
                if e.message != told:
                    told = e.message
                    log.error("%s; the keys stay as they were", told)


def parse(text: str, path: str) -> list[Key]:
    """The keys of a key file.

    Raises:
        UserError: a line is wrong; the message names the file and the line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(_key(line.strip()))
            except ValueError as e:
                raise UserError(f"{path}, line {number}: {e}", param="server.api_key_file") from None
    return keys


def append(line: str, path: Path) -> None:
    """Add a line to a key file, which is made if it is not there, for its owner only.

    Raises:
        UserError: the file is wrong, has such a key, or cannot be written.
    """
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        gap = "\n" if before and not before.endswith("\n") else ""
        _distinct(parse(f"{before}{gap}{line}\n", str(path)))
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{gap}{line}\n")
    except OSError as e:
        raise UserError(f"cannot write the key file {path}: {e.strerror}", param="file") from None


def _key(line: str) -> Key:
    name, kind, hexadecimal, options = (*line.split(":", 3), "", "", "")[:4]
    if not NAME.fullmatch(name):
        raise ValueError(f"a line begins with the key's name, {NAMES}, and a colon")
    if kind != "sha256":
        raise ValueError(f"after {name}: comes sha256: and the key's hash; 'diastole key new {name}' makes such a line")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", hexadecimal):
        raise ValueError(f"the hash of {name} must be 64 hexadecimal digits")
    if bytes.fromhex(hexadecimal) == digest(""):
        raise ValueError(f"the hash of {name} is that of no key at all")
    limits: dict[str, int] = {}
    rights = set()
    for option in filter(None, options.split(",")):
        word, equals, value = option.strip().partition("=")
        if equals and word in _LIMITS:
            if not (value.isascii() and value.isdigit() and len(value) <= 12):
                raise ValueError(f"{word} must be a whole number, at most 12 digits; 0: no limit")
            limits[_LIMITS[word]] = int(value)
        elif option.strip() in RIGHTS:
            rights.add(option.strip())
        else:
            known = ", ".join([*(f"{limit}=N" for limit in _LIMITS), *RIGHTS])
            raise ValueError(f"{option.strip()[:40]!r} is none of {known}")
    return Key(name, bytes.fromhex(hexadecimal), Limits(**limits), frozenset(rights))


def _distinct(keys: Sequence[Key]) -> list[Key]:
    by_digest: dict[bytes, str] = {}
    names: set[str] = set()
    for key in keys:
        if key.name in names:
            raise UserError(f"two keys are called {key.name}: names must differ", param="server.api_key_file")
        if (other := by_digest.setdefault(key.digest, key.name)) != key.name:
            raise UserError(f"{other} and {key.name} are the same key", param="server.api_key_file")
        names.add(key.name)
    return list(keys)


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
