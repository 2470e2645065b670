"""Where workers run: each call of a ``Placer`` starts one, on this machine (``Here``) or where Ray has room
(``on_ray.OnRay``)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

import msgspec

from diastole.cluster.door import Address
from diastole.cluster.worker import Start
from diastole.frontend import malloc
from diastole.frontend.link import how_it_ended
from diastole.types import UserError


class Nowhere(UserError):
    """There is no place for a worker at the moment; it is not the worker's fault."""


class Placed(Protocol):
    """A worker's process."""

    address: Address

    def alive(self) -> bool: ...

    def kill(self) -> None:
        """At once."""
        ...

    async def ended(self) -> str:
        """Wait until it has ended, killing it if it takes too long; how it ended, for a log."""
        ...

    def processes(self) -> Sequence[int]:
        """Their ids, of those on this machine."""
        ...


class Placer(Protocol):
    """Where workers come from."""

    async def place(self, start: Start) -> Placed:
        """Start one; it listens.

        Raises:
            Nowhere: there is no room for it now.
            UserError: it does not come up.
        """
        ...

    def close(self) -> None:
        """No more will be placed."""
        ...


class Here:
    """Processes of this machine."""

    async def place(self, start: Start) -> Child:
        command = [sys.executable, "-m", "diastole.cluster.worker"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**malloc.ENVIRONMENT, **os.environ}
        )
        try:
            return Child(child, await asyncio.to_thread(_introduced, child, start))
        except BaseException:
            child.kill()
            raise

    def close(self) -> None:
        """Nothing is held."""


def _introduced(child: subprocess.Popen[bytes], start: Start) -> Address:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(msgspec.json.encode(start) + b"\n")
        child.stdin.flush()
        return msgspec.json.decode(child.stdout.readline(4096), type=Address)
    except (OSError, msgspec.MsgspecError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        raise UserError(f"a worker ended {how_it_ended(child)} before it listened") from None


class Child:
    """One of them."""

    def __init__(self, child: subprocess.Popen[bytes], address: Address) -> None:
        self._child, self.address = child, address

    def alive(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        self._child.kill()

    async def ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._child.wait, 5)
        if self._child.poll() is None:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        return how_it_ended(self._child)

    def processes(self) -> Sequence[int]:
        return [self._child.pid]
