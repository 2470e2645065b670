"""The microphone: what PortAudio's thread hands over, by a stand-in for its library; and a real one, a wire through a
PulseAudio server of the test's own, where that is installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diastole.signals import mic
from diastole.signals.source import Piece, source
from diastole.types import Array, UserError


class Wire:
    """Stands in for sounddevice: a stream to which the test speaks."""

    def __init__(self) -> None:
        self.stream: Any = None

    def InputStream(self, rate: int, block: int, *, callback: Any, finished_callback: Any, **_: Any) -> Wire:
        self.hear, self.end = callback, finished_callback
        return self

    def start(self) -> None:
        """Nothing is heard by itself."""

    def stop(self) -> None:
        self.end()

    def close(self) -> None:
        """Nothing is open."""

    def say(self, x: Array, at: float, lost: bool = False) -> None:
        """One block, whose first sample is of this second of PortAudio's clock."""
        status = SimpleNamespace(input_overflow=lost)
        self.hear(x[:, None], len(x), SimpleNamespace(inputBufferAdcTime=at), status)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    found = Wire()
    monkeypatch.setitem(sys.modules, "sounddevice", found)  # type: ignore[arg-type]
    return found


def block(i: int) -> Array:
    return np.full(mic.BLOCK, i, np.float32)


def test_blocks_come_in_order_with_their_numbers(wire: Wire) -> None:
    heard = source("mic")
    for i in range(3):
        wire.say(block(i), 5 + i * mic.BLOCK / mic.RATE)
    heard.close()
    pieces = list(heard)
    assert [p.first for p in pieces] == [0, 640, 1280]
    assert all(np.array_equal(p.x[:, 0], block(i)) for i, p in enumerate(pieces))


def test_what_the_system_lost_is_missing(wire: Wire) -> None:
    heard = source("mic")
    wire.say(block(0), 5.0)
    wire.say(block(1), 5.04)
    wire.say(block(2), 5.28, lost=True)  # five blocks later
    wire.say(block(3), 5.32)
    heard.close()
    assert [p.first for p in heard] == [0, 640, 4480, 5120]


def test_a_slow_reader_loses_the_newest_and_is_told_where(wire: Wire) -> None:
    heard = source("mic")
    for i in range(mic.WAITING + 2):
        wire.say(block(i), i * 0.04)
    read: Iterator[Piece] = iter(heard)
    assert next(read).first == 0
    wire.say(block(9), (mic.WAITING + 2) * 0.04)
    heard.close()
    *_, before, last = read
    assert before.first == (mic.WAITING - 1) * mic.BLOCK
    assert last.first == (mic.WAITING + 2) * mic.BLOCK


def test_a_microphone_that_is_pulled_out_is_told_after_what_was_heard(wire: Wire) -> None:
    heard = source("mic")
    wire.say(block(1), 0.0)
    wire.end()
    read = iter(heard)
    assert next(read).first == 0
    with pytest.raises(UserError, match="the microphone is gone"):
        next(read)


def test_a_missing_portaudio_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(UserError, match="libportaudio2"):
        source("mic")


# ---- a real one

PULSE = """
load-module module-native-protocol-unix
load-module module-null-sink sink_name=wire rate=16000 channels=1
set-default-sink wire
set-default-source wire.monitor
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a sound server whose microphone hears what is played."""
    if not all(map(shutil.which, ("pulseaudio", "pactl", "paplay"))):
        pytest.skip("needs pulseaudio, pulseaudio-utils, libasound2-plugins")
    try:
        importlib.import_module("sounddevice")
    except (ImportError, OSError) as e:  # it is not installed, or PortAudio is not
        pytest.skip(str(e))
    (tmp_path / "script.pa").write_text(PULSE)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PULSE_")}
    env |= {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    options = ["-n", "-F", str(tmp_path / "script.pa"), "--exit-idle-time=-1", "--daemonize=no", "--disable-shm=true"]
    server = subprocess.Popen(["pulseaudio", *options], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if subprocess.run(["pactl", "info"], env=env, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            pytest.skip("the sound server does not start here")
        yield env
    finally:
        server.terminate()
        server.wait(10)


HEARS = """
import sys, numpy as np
from diastole.signals.source import source
heard = source("mic")
print("open", flush=True)
parts, loud = [], 0
for piece in heard:
    assert piece.first is not None
    parts.append(piece)
    loud += int((np.abs(piece.x) > 0.1).sum())
    if loud > 4000 or len(parts) > 500:
        break
heard.close()
x = np.concatenate([p.x[:, 0] for p in parts])
np.save(sys.argv[1], x[np.argmax(np.abs(x) > 0.05):])
"""


def test_a_real_microphone_hears_what_is_played(real: dict[str, str], tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    t = np.arange(mic.RATE) / mic.RATE
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * t), mic.RATE)
    saved = tmp_path / "heard.npy"
    listener = subprocess.Popen([sys.executable, "-c", HEARS, saved], env=real, stdout=subprocess.PIPE, text=True)
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "open\n"
        subprocess.run(["paplay", str(tmp_path / "tone.wav")], env=real, check=True, timeout=60)
        assert listener.wait(60) == 0
    finally:
        listener.kill()
    x = np.load(saved)[:4000]
    found = np.abs(np.fft.rfft(x * np.hanning(len(x)))).argmax() * mic.RATE / len(x)
    assert abs(found - 440) <= mic.RATE / len(x)
