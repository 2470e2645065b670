"""EngineClient: requests in, tokens out, over one link. It knows nothing of text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from diastole.frontend import wire
from diastole.frontend.link import Link
from diastole.types import UserError


class EngineLost(RuntimeError):
    """The engine died while it worked on a request."""


class EngineClient:
    """One engine's requests. All methods belong to one event loop."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._streams: dict[str, asyncio.Queue[wire.Spoken | Exception]] = {}
        self._stats: list[asyncio.Future[Mapping[str, Any]]] = []
        self.lost = True  # until it has started

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._streams)

    async def start(self) -> wire.Ready:
        """Raises:
        UserError: the engine cannot start, and why.
        """
        ready = await self._link.start(self._reply, self._loss)
        self.lost = False
        return ready

    async def stop(self, now: bool) -> None:
        """End the engine: when its requests have ended, or ``now``."""
        if not self.lost:
            self._link.put(wire.Quit(now))
        await self._link.stop()

    @property
    def alive(self) -> bool:
        return not self.lost and self._link.alive()

    async def stream(self, add: wire.Add) -> AsyncIterator[wire.Spoken]:
        """Run a request. Leaving the iterator early aborts it.

        Raises:
            UserError: the engine refuses it.
            EngineLost: the engine died.
        """
        if self.lost:
            raise EngineLost("the engine process has ended")
        inbox: asyncio.Queue[wire.Spoken | Exception] = asyncio.Queue()
        self._streams[add.id] = inbox
        open_choices = set(range(add.params.n))  # a choice may be told to have ended twice: by us and by the engine
        try:
            self._link.put(add)
            while open_choices:
                said = await inbox.get()
                if isinstance(said, Exception):
                    open_choices.clear()
                    raise said
                if said.finish is not None:
                    open_choices.discard(said.choice)
                yield said
        finally:
            del self._streams[add.id]
            if open_choices and not self.lost:
                self._link.put(wire.Abort(add.id))

    def end_choice(self, id: str, choice: int, reason: str) -> None:
        """A stop string or a loop was found: the choice needs no more tokens."""
        self._link.put(wire.Abort(id, reason, choice))
        if id in self._streams:  # count it as ended, as the engine will say no more of it
            self._streams[id].put_nowait(wire.Spoken(id, choice, [], None, reason, 0, 0))

    async def stats(self) -> Mapping[str, Any]:
        """Snapshots of the meters by service."""
        if self.lost:
            raise EngineLost("the engine process has ended")
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._link.put(wire.Measure())
        return await answer

    def _reply(self, reply: wire.Reply) -> None:
        match reply:
            case wire.Heard():
                for spoken in reply.spoken:
                    if spoken.id in self._streams:
                        self._streams[spoken.id].put_nowait(spoken)
            case wire.Refused():
                if reply.id in self._streams:
                    error = UserError(reply.message, param=reply.param, code=reply.code)
                    self._streams[reply.id].put_nowait(error)
            case wire.Stats():
                for answer in self._stats:
                    if not answer.done():
                        answer.set_result(reply.services)
                self._stats.clear()

    def _loss(self) -> None:
        self.lost = True
        error = EngineLost("the engine process has ended")
        for inbox in self._streams.values():
            inbox.put_nowait(error)
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(error)
        self._stats.clear()
