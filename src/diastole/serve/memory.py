"""Memory: what the server's processes hold, watched, and new work refused while it is near the limit.

Counted is what only they hold (resident without shared): pages of mapped files go back to the system when it needs
them. A file of the system is read per process twice a second; requests only look at what was found.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from diastole.kernels.cgroup import memory_limit
from diastole.serve.errors import ApiError

log = logging.getLogger("diastole.serve")

SHARE = 0.9  # of the system's limit is the usual one
RELEASE = 0.97  # of the limit: work is taken again below it, so that it does not go to and fro
SECONDS = 0.5  # between two looks
MIB = 2**20


class MemoryWatch:
    """Whether there is memory for new work. All methods belong to one event loop.

    Args:
        limit: bytes.
        held: bytes held now.
        count: is told of each refusal, as of the limit "memory".
    """

    def __init__(self, limit: int, held: Callable[[], int], count: Callable[[str], None]) -> None:
        self.limit, self._held, self._count = limit, held, count
        self.full = False

    def look(self) -> None:
        """Find out. What changes is logged, once."""
        held = self._held()
        if not self.full and held > self.limit:
            self.full = True
            log.warning(
                "%d MiB are held, and %d are the limit: new requests are refused until it is less",
                held // MIB,
                self.limit // MIB,
            )
        elif self.full and held <= RELEASE * self.limit:
            self.full = False
            log.info("%d MiB are held: new requests are taken again", held // MIB)

    def check(self) -> None:
        """Raises:
        ApiError: 503, there is too little memory for new work.
        """
        if self.full:
            self._count("memory")
            message = "The server is short of memory. Try again shortly."
            raise ApiError(503, message, code="memory_pressure", retry_after=5)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(SECONDS)


def usual_limit() -> int:
    """Bytes: most of what this machine has, or of what the system lets this process have of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * min(machine, memory_limit() or machine))


def own_memory(pid: int, processes: Path = Path("/proc")) -> int:
    """Bytes that only this process holds in memory; 0 if it is gone, or where the system does not tell."""
    try:
        _, resident, shared, *_ = map(int, (processes / str(pid) / "statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
