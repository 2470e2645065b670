"""What a store says it takes is what the process grows by."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diastole.kernels.table import compiled
from diastole.state.arena import HUGE

# In a process of its own: nothing else grows meanwhile. Layers begin at other places of the system's large pages.
LAYERS = 4
GROWS = """
import resource, sys
import numpy as np
from diastole.kernels.table import load
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.types import PagedSpec

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

pages, ops = 512, load(1)
kv = PagedKV(sys.argv[1])
k = np.ones((PAGE, 3, 64), np.float32)
ops.kv_write(ops.alloc(ops.kv_page_bytes(sys.argv[1], 64) * 3).reshape(1, 3, -1), sys.argv[1], np.arange(PAGE), k, k)
before = resident()
kv.alloc(PagedSpec(4, 3, 64), pages, ops)
empty = resident() - before
for layer in range(4):
    for page in range(pages):
        kv.write(layer, np.arange(page * PAGE, (page + 1) * PAGE), k, k)
print(empty, resident() - before, int(kv.bytes_per_token * pages * PAGE))
"""


@pytest.mark.skipif(compiled() is None or not sys.platform.startswith("linux"), reason="reads /proc; native pages")
@pytest.mark.parametrize("fmt", ["bf16", "rows", "int8", "rows8", "f32"])
def test_bytes_per_token_are_what_the_process_grows_by(fmt: str) -> None:
    found = subprocess.run([sys.executable, "-c", GROWS, fmt], capture_output=True, text=True, check=True)
    empty, grown, told = map(int, found.stdout.split())
    assert empty < 0.03 * told  # taken as it is touched
    assert 0.97 * told <= grown <= 1.03 * told + LAYERS * HUGE
