"""A real server in this process, for tests that talk to it over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from diastole.config import Config
from diastole.frontend.backend import Backend
from diastole.frontend.link import Thread
from diastole.serve.run import Server


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Server, Backend]]:
    """Until the context is left, with its engine on a thread."""
    backend = Backend(config, Thread)
    server = Server(backend, config.server, lambda text: None)
    task = asyncio.create_task(server.run())
    while not backend.ready():
        await asyncio.sleep(0.01)
    try:
        yield server, backend
    finally:
        server.stop()
        server.stop()
        await task


def go(work: Callable[[], Awaitable[None]]) -> None:
    """Run a test, for a minute at most."""

    async def main() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(main())
