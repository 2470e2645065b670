"""A noisy neighbour: a process that keeps one core busy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def neighbour(core: int | None = None) -> Iterator[None]:
    """Burn one core, this one if it is given, while the context lasts. The process also ends when its standard input
    does."""
    code = "import sys, threading, os\nthreading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()\n"
    if core is not None:
        code += f"os.sched_setaffinity(0, {{{core}}})\n"
    process = subprocess.Popen([sys.executable, "-c", code + "while True: pass"], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.wait()
