"""EngineClient: requests in, tokens out, over one link. It knows nothing of text."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from diastole.engine.trace import View
from diastole.frontend import wire
from diastole.frontend.link import Link
from diastole.frontend.types import EngineLost, RequestEnded
from diastole.types import UserError

Line = wire.Opened | wire.Beat | wire.Unfed  # what comes of a live stream
Step = wire.Painted  # what comes of a picture


class EngineClient:
    """One engine's requests, for as long as it lives. All methods belong to one event loop."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._streams: dict[str, asyncio.Queue[wire.Spoken | Exception]] = {}
        self._live: dict[str, asyncio.Queue[Line | Step | Exception]] = {}  # and pictures
        self._vectors: dict[str, asyncio.Future[bytes]] = {}
        self._stats: list[asyncio.Future[Mapping[str, Any]]] = []
        self._reloads: dict[str, asyncio.Future[wire.AnyCard]] = {}
        self._pings: list[asyncio.Future[None]] = []
        self._views: deque[asyncio.Future[View]] = deque()  # one for each answer that will come, in order
        self.lost = True  # until it has started
        self.ended = asyncio.Event()  # the engine was there and is gone

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._streams) + len(self._vectors) + len(self._live)

    async def start(self) -> wire.Ready:
        """Raises:
        UserError: the engine cannot start, and why.
        """
        ready = await self._link.start(self._reply, self._loss)
        self.lost = self.ended.is_set()  # it may be gone again by now
        return ready

    async def stop(self, now: bool) -> None:
        """End the engine: when its requests have ended, or ``now``."""
        if not self.lost:
            self._link.put(wire.Quit(now))
        await self._link.stop()

    async def kill(self) -> str:
        """End the engine in whatever state it is, and every request with it; how it ended, for a log."""
        self._link.kill()
        await self._link.stop()
        self._loss()
        return self._link.ending()

    @property
    def alive(self) -> bool:
        return not self.lost and self._link.alive()

    @property
    def processes(self) -> Sequence[int]:
        """Ids of the engine's own processes."""
        return self._link.processes()

    async def stream(self, add: wire.Add) -> AsyncIterator[wire.Spoken]:
        """Run a request. Leaving the iterator early aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine ended it.
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

    async def readings(self, wish: wire.Open) -> AsyncIterator[Line]:
        """Open a live stream: that it is open, and what is found in it until its input has ended. Leaving the iterator
        early ends it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine ended it.
            EngineLost: the engine died.
        """
        async with aclosing(self._follow(wish, lambda found: isinstance(found, wire.Beat) and found.final)) as all_:
            async for found in all_:
                yield found

    async def painted(self, wish: wire.Paint) -> AsyncIterator[Step]:
        """Have a picture made: each step, until it is done. Leaving the iterator early aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine ended it.
            EngineLost: the engine died.
        """
        async with aclosing(self._follow(wish, lambda found: found.finish is not None)) as steps:
            async for step in steps:
                yield step

    async def _follow(self, wish: wire.Open | wire.Paint, last: Callable[[Any], bool]) -> AsyncGenerator[Any, None]:
        """What comes of a wish, until the last of it."""
        if self.lost:
            raise EngineLost("the engine process has ended")
        inbox: asyncio.Queue[Line | Step | Exception] = asyncio.Queue()
        self._live[wish.id] = inbox
        over = False
        try:
            self._link.put(wish)
            while not over:
                found = await inbox.get()
                if isinstance(found, Exception):
                    over = True
                    raise found
                over = last(found)
                yield found
        finally:
            del self._live[wish.id]
            if not over and not self.lost:
                self._link.put(wire.Abort(wish.id))

    def feed(self, feed: wire.Feed) -> None:
        """Live input of a stream that is open; of one that is not it is lost."""
        if feed.id in self._live and not self.lost:
            self._link.put(feed)

    async def embed(self, wish: wire.Embed) -> bytes:
        """Have a prompt read: its vector, float32 numbers. Cancelling this aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine ended it.
            EngineLost: the engine died.
        """
        if self.lost:
            raise EngineLost("the engine process has ended")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._vectors[wish.id] = answer
        try:
            self._link.put(wish)
            return await answer
        finally:
            del self._vectors[wish.id]
            if answer.cancelled() and not self.lost:
                self._link.put(wire.Abort(wish.id))

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

    async def reload(self, reload: wire.Reload) -> wire.AnyCard:
        """Have a service loaded anew; only one at a time of each name.

        Raises:
            UserError: it cannot be loaded, and why. The one that runs goes on.
            EngineLost: the engine died.
        """
        if self.lost:
            raise EngineLost("the engine process has ended")
        answer: asyncio.Future[wire.AnyCard] = asyncio.get_running_loop().create_future()
        self._reloads[reload.service] = answer
        self._link.put(reload)
        return await answer

    def ping(self) -> asyncio.Future[None]:
        """Ask the engine whether it is there. The answer never comes from one that hangs or is lost."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.lost:
            self._pings.append(answer)
            self._link.put(wire.Ping())
        return answer

    async def trace(self, since: int) -> View:
        """What the engine holds now, and what it did after step ``since``."""
        if self.lost:
            raise EngineLost("the engine process has ended")
        answer: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        self._views.append(answer)
        self._link.put(wire.Trace(since))
        return await answer

    def _reply(self, reply: wire.Reply) -> None:
        match reply:
            case wire.Heard():
                for spoken in reply.spoken:
                    if spoken.id in self._streams:
                        self._streams[spoken.id].put_nowait(spoken)
            case wire.Opened() | wire.Beat() | wire.Painted() | wire.Unfed():
                if reply.id in self._live:
                    self._live[reply.id].put_nowait(reply)
            case wire.Vector():
                if (vector := self._vectors.get(reply.id)) is not None and not vector.done():
                    vector.set_result(reply.data)
            case wire.Refused():
                self._end(reply.id, UserError(reply.message, param=reply.param, code=reply.code))
            case wire.Over():
                self._end(reply.id, RequestEnded(reply.finish))
            case wire.Stats():
                for answer in self._stats:
                    if not answer.done():
                        answer.set_result(reply.services)
                self._stats.clear()
            case wire.Reloaded():
                self._end_reload(reply.card.name, lambda answer: answer.set_result(reply.card))
            case wire.NotReloaded():
                error = UserError(reply.message, param=reply.param, code=reply.code)
                self._end_reload(reply.service, lambda answer: answer.set_exception(error))
            case wire.Pong():
                for ping in self._pings:
                    if not ping.done():
                        ping.set_result(None)
                self._pings.clear()
            case wire.Traced():
                view = self._views.popleft()
                if not view.done():
                    view.set_result(reply.view)

    def _end(self, id: str, error: Exception) -> None:
        """A request ends with an error."""
        if id in self._streams:
            self._streams[id].put_nowait(error)
        elif id in self._live:
            self._live[id].put_nowait(error)
        elif (vector := self._vectors.get(id)) is not None and not vector.done():
            vector.set_exception(error)

    def _end_reload(self, service: str, end: Callable[[asyncio.Future[wire.AnyCard]], None]) -> None:
        answer = self._reloads.pop(service, None)
        if answer is not None and not answer.done():
            end(answer)

    def _loss(self) -> None:
        if self.ended.is_set():
            return
        self.lost = True
        self.ended.set()
        error = EngineLost("the engine process has ended")
        for inbox in self._streams.values():
            inbox.put_nowait(error)
        for line in self._live.values():
            line.put_nowait(error)
        answers: list[asyncio.Future[Any]] = [
            *self._stats,
            *self._vectors.values(),
            *self._views,
            *self._reloads.values(),
        ]
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
        self._stats.clear()
        self._views.clear()
        self._reloads.clear()
