"""The threads: called from several at once, after fork, at exit, and idle."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kernels.cases import Cache, native, normal, weights

PRELUDE = """
import numpy as np, os, sys, threading
from diastole.kernels.table import load
ops = load(3, "native")
w = ops.pack_f32(np.ones((512, 512), np.float32))
def work():
    y = np.empty((64, 512), np.float32)
    ops.linear(np.ones((64, 512), np.float32), w, y)
    return bool((y == 512).all())
assert work()
"""


def run(script: str) -> None:
    native()
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_several_threads_call_at_once() -> None:
    ops = native(threads=3)
    w = weights("q4", 300, 256).pack(ops)
    cache = Cache(ops, "bf16", [700], 2, 32)
    x, q = normal(np.random.default_rng(0), 24, 256), normal(np.random.default_rng(1), 24, 4, 32)
    zeros, hi = np.zeros(24, int), np.arange(677, 701)
    y = np.empty((24, 300), np.float32)
    ops.linear(x, w, y)
    attended, _ = cache.attend(q, zeros, zeros, hi)
    wrong: list[str] = []

    def work() -> None:
        out = np.empty_like(y)
        for _ in range(40):
            out[...] = 0
            ops.linear(x, w, out)
            if not np.array_equal(out, y):
                wrong.append("linear")
            if not np.array_equal(cache.attend(q, zeros, zeros, hi)[0], attended):
                wrong.append("attend")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_threads_change_while_others_call() -> None:
    from diastole.kernels import _native

    ops = native(threads=2)
    w, x = weights("f32", 256, 256).pack(ops), normal(np.random.default_rng(0), 64, 256)
    y = np.empty((64, 256), np.float32)
    ops.linear(x, w, y)
    stop, wrong = threading.Event(), []

    def work() -> None:
        out = np.empty_like(y)
        while not stop.is_set():
            ops.linear(x, w, out)
            if not np.array_equal(out, y):
                wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(60):
        _native.set_threads(1 + i % 4)
        assert _native.threads() == 1 + i % 4
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not wrong


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    run(
        """
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() and work() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert work()
"""
    )


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_fork_while_another_thread_is_in_a_loop() -> None:
    run(
        """
stop = threading.Event()
def busy():
    while not stop.is_set(): work()
thread = threading.Thread(target=busy); thread.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set(); thread.join()
"""
    )


def test_the_process_ends_while_a_daemon_thread_works() -> None:
    run(
        """
def forever():
    while True: work()
for _ in range(2): threading.Thread(target=forever, daemon=True).start()
for _ in range(20): work()
"""
    )


def test_idle_threads_sleep() -> None:
    """Workers look for work some microseconds, then cost nothing."""
    ops = native(threads=4)
    w, x, y = weights("f32", 256, 256).pack(ops), np.ones((64, 256), np.float32), np.empty((64, 256), np.float32)
    ops.linear(x, w, y)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1  # one spinning thread would cost 0.4
