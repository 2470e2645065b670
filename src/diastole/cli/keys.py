"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any, TextIO

END = "\x04"  # what Ctrl-D types; also when the terminal is gone


class Keys:
    """A context in which keys come at once and are not echoed. Where there is no terminal, none come."""

    def __init__(self, stream: TextIO = sys.stdin) -> None:
        self._stream = stream
        self._kept: list[Any] | None = None

    def __enter__(self) -> Keys:
        if self._stream.isatty():
            import termios
            import tty

            self._kept = termios.tcgetattr(self._stream)
            tty.setcbreak(self._stream)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._kept is not None:
            import termios

            termios.tcsetattr(self._stream, termios.TCSADRAIN, self._kept)

    def pressed(self, seconds: float) -> str:
        """What was typed, waiting so long for something to come."""
        if self._kept is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._stream], [], [], seconds)[0]:
            return ""
        typed = os.read(self._stream.fileno(), 100)
        return typed.decode("utf-8", "replace") or END
