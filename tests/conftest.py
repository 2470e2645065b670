"""Shared fixtures. Test helpers are imported by their path below ``tests``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def torch() -> Iterator[Any]:
    """On one thread: for numbers this small, threads that wait for each other are all the work."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)
