"""Lab Streaming Layer: a stream of the local network, by its name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diastole.signals.source import About, Piece, library
from diastole.types import UserError

WAIT = 5.0  # seconds for a stream to show itself
PULL = 0.2  # seconds for its next samples


class LabStream:
    """A source of samples at a steady rate; one without is refused."""

    def __init__(self, name: str) -> None:
        pylsl = library("pylsl")
        found = pylsl.resolve_byprop("name", name, timeout=WAIT)
        if not found:
            raise UserError(f"no Lab Streaming Layer stream is called {name!r:.80} here", param="source")
        self._inlet = pylsl.StreamInlet(found[0], recover=True)
        info = self._inlet.info()
        if info.nominal_srate() <= 0:
            raise UserError(f"the stream {name!r:.80} has no steady rate", param="source")
        names = []
        channel = info.desc().child("channels").child("channel")
        for i in range(info.channel_count()):
            names.append(channel.child_value("label") or f"ch{i + 1}")
            channel = channel.next_sibling()
        self._closed = False
        self.about = About(float(info.nominal_srate()), tuple(names), None, live=True)

    def __iter__(self) -> Iterator[Piece]:
        while not self._closed:
            samples, _ = self._inlet.pull_chunk(timeout=PULL)
            if samples:
                yield Piece(np.asarray(samples, np.float32))

    def close(self) -> None:
        """Let go of it."""
        self._closed = True
        self._inlet.close_stream()
