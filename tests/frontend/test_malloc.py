"""What the C library keeps: arrays of a step come back without new pages, and large ones go at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diastole.frontend import malloc

STEPS = """
import resource
import sys
import numpy as np
from diastole.frontend import malloc

if sys.argv[1] == "settled":
    malloc.settle()


def step():
    arrays = [np.ones(200_000, np.float32) for _ in range(4)]  # 800 KB each
    return sum(float(a[0]) for a in arrays)


for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, more: dict[str, str]) -> int:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, env=clean | more
    )
    return int(ran.stdout)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="another C library")
def test_a_steps_arrays_need_no_new_pages() -> None:
    once = {"MALLOC_MMAP_THRESHOLD_": malloc.ENVIRONMENT["MALLOC_MMAP_THRESHOLD_"]}
    assert faults("as it is", once) > 5_000  # 200 pages for each array of each step: what is to be avoided
    assert faults("as it is", malloc.ENVIRONMENT) < 500
    assert faults("settled", {}) < 500
