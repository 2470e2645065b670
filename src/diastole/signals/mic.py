"""The microphone."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from diastole.signals.source import About, Piece, library
from diastole.types import UserError

RATE = 16_000
BLOCK = 640  # samples


class Microphone:
    """A live source of what the usual microphone hears, through PortAudio (pip install sounddevice)."""

    def __init__(self) -> None:
        try:
            sounddevice = library("sounddevice")
        except (UserError, OSError):
            raise UserError("the microphone needs PortAudio: pip install sounddevice", param="source") from None
        self.about = About(float(RATE), ("mono",), None, live=True)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            self._stream = sounddevice.InputStream(RATE, BLOCK, channels=1, dtype="float32", callback=self._hear)
            self._stream.start()
        except Exception as e:  # whatever the system says
            raise UserError(
                f"the microphone cannot be opened: {' '.join(str(e).split())[:200]}", param="source"
            ) from None

    def _hear(self, data: Any, frames: int, time: Any, status: Any) -> None:
        self._queue.put(data.copy())

    def __iter__(self) -> Iterator[Piece]:
        while True:
            yield Piece(self._queue.get())

    def close(self) -> None:
        """Let go of it."""
        self._stream.stop()
        self._stream.close()
