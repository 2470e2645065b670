"""Shared fixtures. Test helpers are imported by their path below ``tests``."""

import os
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from diastole.kernels.table import compiled

sys.path.insert(0, str(Path(__file__).parent))

if built := os.environ.get("DIASTOLE_NATIVE"):  # other operators than those that are installed: see `make tiles`
    spec = spec_from_file_location("diastole.kernels._native", built)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, each process has a core of its own: engines take as many threads as cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True, scope="module")
def instruction_set() -> None:
    """The best one to begin with: it is one for the whole process, and tests of others leave the slowest behind."""
    native = compiled()
    if native is not None:
        native.set_isa(native.isas()[0])


@pytest.fixture
def torch() -> Iterator[Any]:
    """On one thread: for numbers this small, threads that wait for each other are all the work."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)
