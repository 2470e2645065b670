"""Formats: how families of models write calls of tools in their answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write calls. A call is a JSON object with ``name`` and the arguments.

    Some models leave the opener out where the whole answer is calls: ``bare`` is how such an answer begins.
    """

    opener: str  # what comes before calls, anywhere in an answer
    closer: str  # what comes after them; "" for nothing
    key: str  # of the arguments
    first: str  # what calls that are written by us begin with
    between: str | None  # None: one call at a time
    last: str
    bare: str = ""  # an answer that begins with this character may be calls without the opener

    def call(self, name: str, arguments: str) -> str:
        """One call. ``arguments`` is JSON."""
        return f"{self.head(name)}{arguments}}}"

    def head(self, name: str) -> str:
        """A call up to its arguments."""
        return f'{{"name": {json.dumps(name)}, "{self.key}": '

    def written(self, calls: Iterable[str]) -> str:
        """Several calls as one text."""
        return self.first + (self.between or "\n").join(calls) + self.last


HERMES = Format(
    opener="<tool_call>",
    closer="</tool_call>",
    key="arguments",
    first="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    last="\n</tool_call>",
)
LLAMA = Format(opener="<|python_tag|>", closer="", key="parameters", first="", between=None, last="", bare="{")
MISTRAL = Format(opener="[TOOL_CALLS]", closer="", key="arguments", first="[", between=", ", last="]", bare="[")
FORMATS = (HERMES, LLAMA, MISTRAL)
# They may be control tokens, which are no text otherwise.
MARKERS = tuple(marker for f in FORMATS for marker in (f.opener, f.closer) if marker)
