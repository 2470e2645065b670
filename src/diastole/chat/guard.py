"""Guard: what a request says never becomes a special token, what the chat template writes does.

Before a template is rendered, every special token's name in the request's strings gets a marker after its first
character. In the rendered text the names that are whole are the template's own: they are given private names, the
markers are taken out, and the text is encoded by a vocabulary that knows special tokens by their private names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diastole.text.tokenizer import Tokenizer, TokenizerError

MARK = "\ufdd0"  # a code point that Unicode keeps free of meaning; where a request brings it, it is lost
LONGEST_NAME = 100  # characters


class Guard:
    """Args:
    tokenizer: whose special tokens are guarded.

    Raises:
        TokenizerError: a special token has an unreasonably long name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        names = [n for n in tokenizer.special_names if len(n) > 1]
        self._names = _any_of(names)
        self._beginnings = frozenset(name[:n] for name in names for n in range(1, len(name)))
        self._longest = max(map(len, self._beginnings), default=0)

    def broken(self, value: Any) -> Any:
        """The same strings, lists and mappings, but no string holds a special token's name, or ends like the beginning
        of one: a template may write two strings side by side."""
        if isinstance(value, str):
            return self._broken(value)
        if isinstance(value, Mapping):
            return {self.broken(k): self.broken(v) for k, v in value.items()}
        return [self.broken(v) for v in value] if isinstance(value, list | tuple) else value

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text, whose strings from requests went through ``broken``."""
        if MARK not in text:
            return self._tokenizer.encode(text, special=True)
        return self._tokenizer.encode_private(self._names.sub(self._private, text).replace(MARK, ""))

    def _private(self, name: re.Match[str]) -> str:
        return self._tokenizer.private_name(name[0])

    def _broken(self, text: str) -> str:
        text = self._names.sub(_marked, text)
        begun = any(text[-n:] in self._beginnings for n in range(1, self._longest + 1))
        return text + MARK if begun else text


def _marked(name: re.Match[str]) -> str:
    return name[0][0] + MARK + name[0][1:]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the names at a place, in time that does not depend on how many there are."""
    tree: dict[str, Any] = {}
    for name in names:
        if len(name) > LONGEST_NAME:
            raise TokenizerError(f"the name of special token {name[:20]!r}... has more than {LONGEST_NAME} characters")
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_branch(tree) or r"(?!)")


def _branch(node: Mapping[str, Any]) -> str:
    parts = [re.escape(character) + _branch(below) for character, below in node.items() if character]
    if not parts:
        return ""
    if "" in node:
        return f"(?:{'|'.join(parts)})?"
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
