"""The microphone."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from diastole.signals.source import About, Piece, library
from diastole.types import UserError

RATE = 16_000
BLOCK = 640  # samples
WAITING = 750  # blocks, 30 s, that wait for a reader at most


class Microphone:
    """A live source of what the usual microphone hears, through PortAudio (Debian: libportaudio2).

    What a reader leaves waiting for more than 30 s, and what the system lost, is missing before the piece that follows.
    """

    def __init__(self) -> None:
        try:
            sounddevice = library("sounddevice")
        except OSError:
            message = "the microphone needs PortAudio; its Debian package is libportaudio2"
            raise UserError(message, param="source") from None
        self.about = About(float(RATE), ("mono",), None, live=True)
        self._queue: queue.Queue[Piece | None] = queue.Queue(WAITING + 1)  # and the end
        self._heard = 0  # samples up to here
        self._began: float | None = None  # seconds of PortAudio's clock at the first sample
        self._closed = False
        try:
            self._stream = sounddevice.InputStream(
                RATE, BLOCK, channels=1, dtype="float32", callback=self._hear, finished_callback=self._end
            )
            self._stream.start()
        except Exception as e:  # whatever the system says
            raise UserError(
                f"the microphone cannot be opened: {' '.join(str(e).split())[:200]}", param="source"
            ) from None

    def _hear(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """One block; called on PortAudio's thread."""
        at = float(time.inputBufferAdcTime)
        if self._began is None:
            self._began = at
        if status.input_overflow:  # how much was lost only the clock knows
            self._heard = max(self._heard, round((at - self._began) * RATE))
        if self._queue.qsize() < WAITING:
            self._queue.put_nowait(Piece(data.copy(), self._heard))
        self._heard += frames

    def _end(self) -> None:
        """No more will be heard."""
        self._queue.put_nowait(None)

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._queue.get()) is not None:
            yield piece
        if not self._closed:
            raise UserError("the microphone is gone", param="source")

    def close(self) -> None:
        """Let go of it; whoever waits for more is told that this is the end."""
        if not self._closed:
            self._closed = True
            self._stream.stop()
            self._stream.close()
