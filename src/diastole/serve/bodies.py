"""Bodies: what requests bring, read as it comes and taken apart where that holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from diastole.serve.exchange import Exchange

T = TypeVar("T")

SMALL = 8 * 1024  # bytes; so many take about a millisecond at worst


class Bodies:
    """Small bodies are parsed on the event loop, larger ones on a thread of their own, one at a time: several at once
    would only take the interpreter from each other and from the loop.

    Args:
        most: bytes of a body.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._thread = ThreadPoolExecutor(1, "bodies")

    async def read(self, exchange: Exchange, parse: Callable[[bytes], T]) -> T:
        """The whole body, parsed.

        Raises:
            ApiError: 413 it is too large; 408 it does not come; or what ``parse`` raises.
            Gone: the client left before its end.
        """
        body = await exchange.body(self._most)
        if len(body) <= SMALL:
            return parse(body)
        return await asyncio.get_running_loop().run_in_executor(self._thread, parse, body)
