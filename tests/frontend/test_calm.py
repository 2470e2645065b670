"""What an engine's process has loaded is left out of collections, until a model is loaded anew."""

from __future__ import annotations

import subprocess
import sys

LEFT_OUT = """
import gc
from diastole.frontend.calm import calm, stirring

kept = [[i] for i in range(50_000)]  # lists are looked at
with calm():
    assert gc.get_freeze_count() >= 50_000
    assert len(gc.get_objects()) < 1_000
    loop = []
    loop.append(loop)
    del loop
    assert gc.collect() >= 1  # what came later is found
    assert stirring(lambda name: name.upper())("a") == "A"
    assert gc.get_freeze_count() == 0
with calm():
    pass
assert gc.get_freeze_count() == 0
"""

IN_A_WORKER = """
import gc, socket
from diastole.frontend import worker

here, there = socket.socketpair()

class Host:
    put = print
    engine = type("Engine", (), {"close": lambda self: None})()
    def run(self):
        print(gc.get_freeze_count(), flush=True)  # afterwards the process may end at any time

worker._build = lambda toml, send: Host()
there.sendall((1).to_bytes(worker.wire.FRAME_BYTES, "little") + b"x")
worker.main(here.detach())
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_there_is_left_out_and_what_comes_is_not() -> None:
    run(LEFT_OUT)


def test_an_engines_process_is_calm_while_it_serves() -> None:
    assert int(run(IN_A_WORKER)) > 1_000
