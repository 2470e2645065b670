"""Live sources over a real network on this machine: a seismic server that a test runs, and Lab Streaming Layer."""

from __future__ import annotations

import io
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from diastole.signals import lsl
from diastole.signals.seedlink import SeedLink
from diastole.signals.source import About, Source, source
from diastole.types import Array, UserError

RATE, START, RECORD = 100.0, 1_600_000_000.0, 512


def record(data: Array, channel: str, at: float = START, rate: float = RATE, **more: Any) -> list[bytes]:
    """Samples as records of miniSEED."""
    import obspy

    header = {
        "network": "XX",
        "station": "ABC",
        "channel": channel,
        "sampling_rate": rate,
        "starttime": obspy.UTCDateTime(at),
    }
    out = io.BytesIO()
    obspy.Trace(data, header).write(out, "MSEED", reclen=RECORD, **more)
    found = out.getvalue()
    return [found[i : i + RECORD] for i in range(0, len(found), RECORD)]


class Station(threading.Thread):
    """A server of one station that speaks SeedLink 3 as far as ObsPy's client does: what it is asked, it notes."""

    def __init__(self, records: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.records, self.asked = records, []  # type: list[bytes], list[str]
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]

    def run(self) -> None:
        with suppress(OSError), self.server.accept()[0] as peer:
            pending = b""
            while data := peer.recv(4096):
                *lines, pending = (pending + data).split(b"\r")
                for line in lines:
                    self._answer(peer, line.decode().strip())

    def _answer(self, peer: socket.socket, line: str) -> None:
        self.asked.append(line)
        if line == "HELLO":
            peer.sendall(b"SeedLink v3.1 (test)\r\na test's station\r\n")
        elif line.startswith("INFO"):
            xml = b'<?xml version="1.0"?><seedlink><capability name="multistation"/></seedlink>'
            text = np.frombuffer(xml.ljust(200), "|S1")
            (only,) = record(text, "INF", rate=0.0, encoding="ASCII")
            peer.sendall(b"SLINFO  " + only)
        elif line == "END":
            for i, each in enumerate(self.records):
                peer.sendall(b"SL%06X" % (i + 1) + each)
        else:
            peer.sendall(b"OK\r\n")


@contextmanager
def station(records: list[bytes]) -> Iterator[Station]:
    server = Station(records)
    server.start()
    try:
        yield server
    finally:
        server.server.close()


def pieces(found: Source, samples: int) -> Array:
    """The first so many samples, with zeros where a piece says that some are missing."""
    out = np.zeros((samples, len(found.about.channels)), np.float32)
    at = 0
    for piece in found:
        at = at if piece.first is None else piece.first
        n = min(len(piece.x), samples - at)
        out[at : at + n] = piece.x[:n]
        at += len(piece.x)
        if at >= samples:
            return out
    return out


def test_a_seismic_station_is_heard_packet_by_packet() -> None:
    pytest.importorskip("obspy")
    x = np.round(1000 * np.random.default_rng(0).normal(size=(1200, 3))).astype(np.int32)
    records = []
    for lo in range(0, 1200, 100):
        for i in (2, 0, 1):  # in no order of channels
            records += record(x[lo : lo + 100, i].copy(), f"HH{'ENZ'[i]}", START + lo / RATE)
    with station(records) as server:
        found = source(f"seedlink:127.0.0.1:{server.port}/XX.ABC..HH?")
        try:
            assert found.about == About(RATE, ("E", "N", "Z"), START, live=True, station="XX.ABC")
            np.testing.assert_array_equal(pieces(found, 1200), x)
        finally:
            found.close()
    assert any(line.split() == ["STATION", "ABC", "XX"] for line in server.asked)
    assert any(line.startswith("SELECT") and "HH?" in line for line in server.asked)


def test_packets_that_a_station_never_sent_are_a_gap() -> None:
    pytest.importorskip("obspy")
    x = np.arange(900).reshape(300, 3).astype(np.int32)
    records = []
    for lo in (0, 200):  # nothing of the second in between
        for i in range(3):
            records += record(x[lo : lo + 100, i].copy(), f"HH{'ENZ'[i]}", START + lo / RATE)
    with station(records) as server:
        found = SeedLink(f"127.0.0.1:{server.port}/XX.ABC")
        try:
            heard = pieces(found, 300)
        finally:
            found.close()
    want = x.astype(np.float32)
    want[100:200] = 0
    np.testing.assert_array_equal(heard, want)


def test_a_station_that_is_let_go_keeps_nobody_waiting() -> None:
    """It sends nothing more, and its reader waits on another thread."""
    pytest.importorskip("obspy")
    x = np.arange(300).reshape(100, 3).astype(np.int32)
    records = [r for i in range(3) for r in record(x[:, i].copy(), f"HH{'ENZ'[i]}", START)]
    with station(records) as server:
        found = SeedLink(f"127.0.0.1:{server.port}/XX.ABC")
        heard: list[Array] = []
        reader = threading.Thread(target=lambda: heard.extend(piece.x for piece in found), daemon=True)
        reader.start()
        while not heard:
            time.sleep(0.01)
        found.close()
        found.close()
        reader.join(20)
    assert not reader.is_alive()
    np.testing.assert_array_equal(np.concatenate(heard), x)


def test_a_station_that_is_not_there_is_told() -> None:
    pytest.importorskip("obspy")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match="cannot be reached"):
        SeedLink(f"127.0.0.1:{port}/XX.ABC")


def lab() -> Any:
    """The library, where it is installed and finds its own."""
    try:
        import pylsl
    except (ImportError, RuntimeError):
        pytest.skip("pylsl is not installed")
    return pylsl


@contextmanager
def sending(push: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            push()
            time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_stream_of_a_lab_is_heard_by_its_name() -> None:
    pylsl = lab()
    name = f"test-{uuid.uuid4()}"
    info = pylsl.StreamInfo(name, "EEG", 3, 250.0, "float32", name)
    channels = info.desc().append_child("channels")
    for label in ("Fz", "Cz", "Pz"):
        channels.append_child("channel").append_child_value("label", label)
    outlet, count = pylsl.StreamOutlet(info), 0

    def push() -> None:
        nonlocal count
        if outlet.have_consumers():
            outlet.push_sample([count, 2.0 * count, -count])
            count += 1

    with sending(push):
        found = source(f"lsl:{name}")
        try:
            assert found.about == About(250.0, ("Fz", "Cz", "Pz"), None, live=True)
            heard = pieces(found, 50)
        finally:
            found.close()
    np.testing.assert_array_equal(np.diff(heard[:, 0]), 1)  # one after the other, none twice
    np.testing.assert_array_equal(heard[:, 1:], heard[:, :1] * [2, -1])


def test_streams_of_a_lab_that_cannot_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    pylsl = lab()
    monkeypatch.setattr(lsl, "WAIT", 1.0)
    with pytest.raises(UserError, match="no Lab Streaming Layer stream is called 'nobody'"):
        lsl.LabStream("nobody")
    name = f"test-{uuid.uuid4()}"
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Markers", 1, 0.0, "float32", name))
    with pytest.raises(UserError, match="has no steady rate"):
        lsl.LabStream(name)
    del outlet
