"""Flow: text that comes in pieces, wrapped at words for a terminal of some width."""

from __future__ import annotations

import re

from rich.cells import cell_len


class Flow:
    """``feed`` gives what can be printed now: whole words, with line breaks where the next would not fit.

    Args:
        width: cells of a line.
        column: cells that the line holds already.
    """

    def __init__(self, width: int, column: int = 0) -> None:
        self.width, self.column = width, column
        self._word = ""  # begun, and perhaps not ended

    def feed(self, text: str) -> str:
        *whole, self._word = re.split(r"(?<=\s)(?=\S)|(?<=\S)(?=\s)|(?=\n)|(?<=\n)", self._word + text)
        if self._word.isspace():
            whole.append(self._word)
            self._word = ""
        return "".join(map(self._place, whole))

    def flush(self) -> str:
        """The last word."""
        word, self._word = self._word, ""
        return self._place(word)

    def _place(self, part: str) -> str:
        if part == "\n":
            self.column = 0
            return part
        size = cell_len(part)
        if self.column + size <= self.width or not part:
            self.column += size
            return part
        if part.isspace():  # the end of the line stands for it
            self.column = 0
            return "\n"
        begun = self.column > 0
        self.column = size % self.width  # a word longer than a line is the terminal's to break
        return "\n" + part if begun else part
