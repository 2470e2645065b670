"""One server for the tests that leave it as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from serve.fakes import Running


@pytest.fixture(scope="session")
def shared() -> Iterator[Running]:
    with Running() as server:
        deadline = time.monotonic() + 10
        while httpx.get(server.url + "/ready").status_code != 200:
            assert time.monotonic() < deadline, "the server is not ready"
        yield server


@pytest.fixture
def server(shared: Running) -> Running:
    """A server whose fake behaves well until told otherwise."""
    shared.service.reset()
    return shared


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10) as client:
        yield client


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something is true; fail after a generous while."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait
