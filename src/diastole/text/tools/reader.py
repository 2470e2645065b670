"""CallReader: one call as it is written, character by character, its arguments let out as they come."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

LONGEST_HEAD = 400  # characters before the arguments
# What nearly every model writes. Then the name is certain before the arguments begin.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_NAME_FIRST = re.compile(r'\{\s*"name"')


class CallReader:
    """Reads one JSON object from its opening brace to the closing one.

    ``name`` is set as soon as the arguments can be let out; ``foreign`` as soon as this is no call with its name in
    front, or one of an unknown function; ``done`` at the closing brace.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name: str | None = None
        self.foreign = False
        self.done = False
        self._names = names
        self._raw: list[str] = []
        self._length = 0
        self._depth = 0
        self._quoted = self._escaped = False
        self._keyed = False  # the first key was looked at
        self._letting = False  # inside the arguments

    @property
    def raw(self) -> str:
        """All that was read."""
        return "".join(self._raw)

    def read(self, text: str) -> tuple[str, str]:
        """Read on. What of the arguments is new, and what follows the object."""
        begin = 0  # of what belongs to the arguments
        end: int | None = None
        for i, c in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._quoted = False
                    if not self._keyed:
                        self._keyed = True
                        self.foreign = not _NAME_FIRST.fullmatch(self.raw + text[: i + 1])
            elif c == '"':
                self._quoted = True
            elif c in "{[":
                self._depth += 1
                if self._depth == 2 and self.name is None and not self.foreign:
                    self._decide(self.raw + text[:i], c)
                    begin = i
            elif c in "}]":
                self._depth -= 1
                if self._depth == 1 and self._letting:
                    self._letting, end = False, i + 1
                if self._depth == 0:
                    self.done = True
                    return self._take(text[: i + 1], begin, end), text[i + 1 :]
        if self.name is None and self._length + len(text) > LONGEST_HEAD:
            self.foreign = True
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

    def _decide(self, head: str, opening: str) -> None:
        match = _HEAD.fullmatch(head) if len(head) <= LONGEST_HEAD and opening == "{" else None
        if match is None or match[1] not in self._names:
            self.foreign = True
        else:
            self.name, self._letting = match[1], True

    def _take(self, text: str, begin: int, end: int | None) -> str:
        self._raw.append(text)
        self._length += len(text)
        return text[begin:end] if self._letting or end is not None else ""
