"""SeedLink: a seismic station's channels as its network sends them, by HOST/NET.STA, or HOST:PORT/NET.STA.LOC.CHA."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from diastole.signals.source import About, Piece, component, library
from diastole.types import Array, UserError

CONNECT = 10.0  # seconds until the server must have answered
FIRST = 60.0  # seconds for the first packets of all channels
ORDER = ("E", "N", "Z")


class Joined:
    """Puts packets of several channels side by side: what all of them have come to goes on."""

    def __init__(self, channels: tuple[str, ...], rate: float, start: float) -> None:
        self.channels, self.rate, self.start = channels, rate, start
        self._parts: dict[str, list[tuple[int, Array]]] = {c: [] for c in channels}
        self._told = 0  # samples that have gone on

    def add(self, channel: str, at: float, data: Array) -> None:
        """A packet whose first sample is of this time."""
        self._parts[channel].append((round((at - self.start) * self.rate), data))

    def take(self) -> list[Piece]:
        """What all channels have; between packets that do not follow each other a piece begins with its number."""
        pieces = []
        while all(self._parts.values()):
            for parts in self._parts.values():
                parts.sort(key=lambda part: part[0])
            lo = max(max(parts[0][0] for parts in self._parts.values()), self._told)
            hi = min(parts[0][0] + len(parts[0][1]) for parts in self._parts.values())
            if hi > lo:
                columns = [parts[0][1][lo - parts[0][0] : hi - parts[0][0]] for parts in self._parts.values()]
                pieces.append(Piece(np.stack(columns, 1).astype(np.float32), lo))
                self._told = hi
            for parts in self._parts.values():
                at, data = parts[0]
                if at + len(data) <= max(hi, self._told):
                    parts.pop(0)
        return pieces


class SeedLink:
    """A live source of the three components of a station."""

    def __init__(self, name: str) -> None:
        library("obspy")
        server, slash, code = name.partition("/")
        parts = code.split(".")
        if not slash or not 2 <= len(parts) <= 4 or not all(parts[:2]):
            raise UserError("write seedlink:HOST/NET.STA, or seedlink:HOST:PORT/NET.STA.LOC.CHA", param="source")
        self._closed = False
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client = _client(server if ":" in server else f"{server}:18000", self._queue.put)
        location, channel = (*parts[2:], "", "")[:2]
        self._client.select_stream(parts[0], parts[1], f"{location}{channel or '?H?'}")
        threading.Thread(target=self._run, name="diastole-seedlink", daemon=True).start()
        self._joined = self._first()
        self.about = About(
            self._joined.rate, self._joined.channels, self._joined.start, live=True, station=".".join(parts[:2])
        )

    def _run(self) -> None:
        try:
            self._client.run()
        except Exception as e:  # whatever the network does
            self._queue.put(UserError(f"SeedLink: {' '.join(str(e).split())[:200]}", param="source"))
        self._queue.put(None)

    def _next(self, seconds: float | None) -> Any:
        """Raises:
        UserError: the connection failed, or nothing came in time.
        """
        try:
            found = self._queue.get(timeout=seconds)
        except queue.Empty:
            raise UserError(f"nothing came from the SeedLink server in {seconds:g} s", param="source") from None
        if isinstance(found, UserError):
            raise found
        return found

    def _first(self) -> Joined:
        """Wait until every component has been heard of."""
        packets: dict[str, Any] = {}
        waiting = []
        while set(packets) < set(ORDER):
            trace = self._next(FIRST)
            if trace is None:
                raise UserError("the SeedLink server has ended the connection", param="source")
            waiting.append(trace)
            packets.setdefault(component(trace.stats.channel), trace)
        start = max(float(packets[c].stats.starttime.timestamp) for c in ORDER)
        joined = Joined(ORDER, float(waiting[0].stats.sampling_rate), start)
        for trace in waiting:
            self._add(joined, trace)
        return joined

    @staticmethod
    def _add(joined: Joined, trace: Any) -> None:
        channel = component(trace.stats.channel)
        if channel in ORDER:
            joined.add(channel, float(trace.stats.starttime.timestamp), trace.data)

    def __iter__(self) -> Iterator[Piece]:
        yield from self._joined.take()
        while not self._closed and (trace := self._next(None)) is not None:
            self._add(self._joined, trace)
            yield from self._joined.take()

    def close(self) -> None:
        """End the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)  # whoever waits need not for what the connection says of it
            self._client.close()


def _client(server: str, put: Any) -> Any:
    """ObsPy's client, which calls ``put`` with every packet."""
    from obspy.clients.seedlink.easyseedlink import EasySeedLinkClient

    class Client(EasySeedLinkClient):
        def on_data(self, trace: Any) -> None:
            put(trace)

    try:
        client = Client(server, autoconnect=False)
        client.conn.timeout = CONNECT  # ObsPy 1.5 compares it with numbers, and has none by itself
        client.connect()
        return client
    except Exception as e:  # whatever the network does
        raise UserError(f"{server} cannot be reached: {' '.join(str(e).split())[:200]}", param="source") from None
