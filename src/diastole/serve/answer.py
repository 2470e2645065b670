"""Answer: what one choice has said, text and calls in their order."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from diastole.chat.tools import CallEnd, CallPiece, CallStart, Piece


@dataclass(slots=True)
class Call:
    """A call of a tool. ``arguments`` is JSON."""

    name: str
    arguments: str


class Answer:
    """Collects pieces. A call that proves malformed becomes the text that it was written as."""

    def __init__(self) -> None:
        self.parts: list[str | Call] = []
        self._texts: list[str] = []
        self._name = ""
        self._arguments: list[str] = []

    def add(self, pieces: Iterable[Piece]) -> None:
        """Go on."""
        for piece in pieces:
            match piece:
                case str():
                    self._texts.append(piece)
                case CallStart():
                    self._name, self._arguments = piece.name, []
                case CallPiece():
                    self._arguments.append(piece.arguments)
                case CallEnd(whole=True):
                    self._end_text()
                    self.parts.append(Call(self._name, "".join(self._arguments)))
                case CallEnd():
                    self._texts.append(piece.raw)

    def end(self) -> None:
        """Nothing more will come."""
        self._end_text()

    @property
    def text(self) -> str:
        return "".join(p for p in self.parts if isinstance(p, str))

    @property
    def calls(self) -> list[Call]:
        return [p for p in self.parts if isinstance(p, Call)]

    def _end_text(self) -> None:
        if self._texts:
            self.parts.append("".join(self._texts))
            self._texts = []


def fresh_id(prefix: str) -> str:
    """The id of a call."""
    return prefix + secrets.token_hex(12)
