"""CallReader: one call as it is written, character by character, its arguments let out as they come."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

LONGEST_HEAD = 400  # characters before the arguments
# What nearly every model writes. Then the name is certain before the arguments begin.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_JSON = frozenset(" \t\r\n:,+-.0123456789Eaeflnrstu")  # what JSON has outside strings besides brackets
_NAME_FIRST = re.compile(r'\{\s*"name"')


class CallReader:
    """Reads one JSON object from its opening brace to the closing one.

    ``name`` is set as soon as the arguments can be let out; ``done`` at the closing brace; ``failed`` where this can be
    no call any more, which may also show at the end only.

    Args:
        names: of the functions there are.
        strict: it is a call only if it begins with the name of one, as ordinary JSON hardly does.
    """

    def __init__(self, names: Collection[str], strict: bool) -> None:
        self.name: str | None = None
        self.done = self.failed = False
        self._names, self._strict = names, strict
        self._raw: list[str] = []
        self._length = 0
        self._depth = 0
        self._quoted = self._escaped = False
        self._keyed = False  # the first key was looked at
        self._decided = False  # whether the arguments can be let out
        self._letting = False  # inside the arguments

    @property
    def raw(self) -> str:
        """All that was read."""
        return "".join(self._raw)

    def read(self, text: str) -> tuple[str, str]:
        """Read on, until done or failed. What of the arguments is new, and what is left of the text."""
        begin, end = 0, None  # of what belongs to the arguments
        for i, c in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._quoted = False
                    if not self._keyed:
                        self._look_at_key(text[: i + 1])
            elif c == '"':
                self._quoted = True
            elif c in "{[":
                self._depth += 1
                if self._depth == 2 and not self._decided:
                    begin = i
                    self._decide(text[:i], c)
            elif c in "}]":
                self._depth -= 1
                if self._depth == 1 and self._letting:
                    self._letting, end = False, i + 1
                self.done = self._depth == 0
            elif c not in _JSON:
                self.failed = True
            if self._strict and not self._decided and self._length + i == LONGEST_HEAD:
                self.failed = True
            if self.done or self.failed:
                stop = i + self.done  # what proves that it is no call is not a part of it
                return self._take(text[:stop], begin, end), text[stop:]
        return self._take(text, begin, end), ""

    def result(self) -> tuple[str, str] | None:
        """Name and arguments (JSON) of a call that is done; None if it is malformed or calls no known function."""
        try:
            call = msgspec.json.decode(self.raw)
            name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):  # JSON within JSON, as OpenAI's own API has it
                arguments = msgspec.json.decode(arguments)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return name, msgspec.json.encode(arguments).decode()

    def _look_at_key(self, text: str) -> None:
        self._keyed = True
        self.failed = self._strict and not _NAME_FIRST.fullmatch(self.raw + text)

    def _decide(self, text: str, opening: str) -> None:
        """Now that something opens within the call: whether it is the arguments, after the name."""
        self._decided = True
        match = None
        if opening == "{" and self._length + len(text) <= LONGEST_HEAD:
            match = _HEAD.fullmatch(self.raw + text)
        if match is not None and match[1] in self._names:
            self.name, self._letting = match[1], True
        else:
            self.failed = self._strict

    def _take(self, text: str, begin: int, end: int | None) -> str:
        self._raw.append(text)
        self._length += len(text)
        return text[begin:end] if self._letting or end is not None else ""
