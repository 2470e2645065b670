"""Workers as Ray actors: Ray chooses the machine, starts the process and says when it dies; what engines and router say
to each other does not pass through Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from diastole.cluster.door import Address
from diastole.cluster.worker import Start, Worker
from diastole.types import UserError

SECONDS = 120.0  # for an actor to be placed and to listen


class Engine:
    """The actor."""

    def __init__(self, start: bytes) -> None:
        import ray

        given = msgspec.json.decode(start, type=Start)
        if given.host != "127.0.0.1":
            given.host = ray.util.get_node_ip_address()
        self._worker = Worker(given)

    def address(self) -> tuple[str, int]:
        host, port = self._worker.address
        return host, port

    def serve(self) -> None:
        self._worker.serve()


class OnRay:
    """A Ray cluster: one that runs already, or one of this machine that ends with this process.

    Args:
        address: as for ``ray.init``: "auto", "host:port" or "ray://host:port"; empty: one is started here.
        cpus: that each worker asks Ray for.

    Raises:
        UserError: Ray is not installed, or does not answer there.
    """

    def __init__(self, address: str = "", cpus: float = 1.0) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("Ray is not installed: pip install 'diastole[cluster]'", param="address") from None
        self._ray: Any = ray
        self._local = not address
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        try:
            if address:
                ray.init(address=address, log_to_driver=False)
            else:
                ray.init(**quiet)
        except (ConnectionError, OSError, ValueError, RuntimeError) as e:
            raise UserError(f"Ray does not answer at {address!r}: {e!s:.300}", param="address") from None
        self._actor: Any = ray.remote(num_cpus=cpus, max_restarts=0)(Engine)

    async def place(self, start: Start) -> Actor:
        start = msgspec.structs.replace(start, host="127.0.0.1" if self._local else "")
        actor = self._actor.remote(msgspec.json.encode(start))
        try:
            address = await asyncio.wait_for(asyncio.wrap_future(actor.address.remote().future()), SECONDS)
        except TimeoutError:
            self._ray.kill(actor)
            raise UserError(f"Ray has found no room for a worker in {SECONDS:.0f} s") from None
        except self._ray.exceptions.RayError as e:
            raise UserError(f"a worker did not come up: {e!s:.300}") from None
        return Actor(self._ray, actor, Address(*address))

    def close(self) -> None:
        self._ray.shutdown()


class Actor:
    """One of them."""

    def __init__(self, ray: Any, actor: Any, address: Address) -> None:
        self._ray, self._actor, self.address = ray, actor, address
        self._served = actor.serve.remote()

    def alive(self) -> bool:
        done, _ = self._ray.wait([self._served], timeout=0)
        return not done

    def kill(self) -> None:
        self._ray.kill(self._actor)

    async def ended(self) -> str:
        done, _ = await asyncio.to_thread(self._ray.wait, [self._served], timeout=5)
        if not done:
            self._ray.kill(self._actor)
        try:
            await asyncio.to_thread(self._ray.get, self._served, timeout=5)
        except Exception as e:  # Ray has many
            with contextlib.suppress(IndexError):
                return f"as Ray says: {str(e).strip().splitlines()[0]:.200}"
        return "in good order"

    def processes(self) -> Sequence[int]:
        return []
