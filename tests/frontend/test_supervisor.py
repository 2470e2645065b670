"""The supervisor, over engines that are scripts and die when told, in a time that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from diastole.frontend import wire
from diastole.frontend.supervisor import REFUSALS, Supervisor
from diastole.frontend.types import EngineLost
from diastole.params import SamplingParams
from diastole.types import UserError

TIMEOUT = 60.0


class Time:
    """Seconds that pass only when told; who sleeps wakes in order."""

    def __init__(self) -> None:
        self.at = 0.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self.at + seconds, waker)
        self.sleepers.append(entry)
        try:
            await waker
        finally:
            self.sleepers.remove(entry)

    async def pass_(self, seconds: float) -> None:
        end = self.at + seconds
        await settle()
        while due := [s for s in self.sleepers if s[0] <= end and not s[1].done()]:
            at, waker = min(due, key=lambda s: s[0])
            self.at = max(self.at, at)
            waker.set_result(None)
            await settle()
        self.at = end


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(30):
        await asyncio.sleep(0)


class Engine:
    """A link to an engine that is a script.

    Args:
        fate: "" lives, "refuse" fails to start with a reason, "fault" with a fault, "stillborn" is gone when it is
            ready, "hang" starts and answers nothing.
    """

    def __init__(self, fate: str, room: int) -> None:
        self.fate, self.room = fate, room
        self.heard: list[wire.Command] = []
        self.up = self.killed = self.stopped = False

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        self.reply, self._on_loss = on_reply, on_loss
        await asyncio.sleep(0)
        if self.fate == "refuse":
            raise UserError("no room", param="engine.memory")
        if self.fate == "fault":
            raise OSError("no processes left")
        self.up = True
        if self.fate == "stillborn":
            self.die()
        return wire.Ready([wire.Card("lm", 100, 50, self.room)], "script")

    def die(self) -> None:
        self.up = False
        self._on_loss()

    def put(self, command: wire.Command) -> None:
        self.heard.append(command)
        if isinstance(command, wire.Ping) and self.fate != "hang":
            self.reply(wire.Pong())

    async def stop(self) -> None:
        self.stopped, self.up = True, False

    def kill(self) -> None:
        self.killed = True

    def alive(self) -> bool:
        return self.up

    def ending(self) -> str:
        return "the script ended"


class Stage:
    """A supervisor whose engines have these fates, then live."""

    def __init__(self, *fates: str, timeout: float = TIMEOUT) -> None:
        self.time = Time()
        self.engines: list[Engine] = []
        self.readies: list[wire.Ready] = []
        self._fates: Iterator[str] = iter(fates)
        self.supervisor = Supervisor(self._connect, timeout, self.readies.append, self.time.sleep, self.time.now)

    def _connect(self) -> Engine:
        self.engines.append(Engine(next(self._fates, ""), len(self.engines)))
        return self.engines[-1]

    @property
    def alive(self) -> bool:
        return self.supervisor.client.alive

    async def seconds_until_next(self) -> float:
        """How long the supervisor waits before it makes another engine."""
        began, engines = self.time.at, len(self.engines)
        await self.time.pass_(0)
        while len(self.engines) == engines:
            assert self.time.at < began + 100, "no other engine is made"
            await self.time.pass_(1)
        return self.time.at - began


def play(stage: Stage, scene: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        await stage.supervisor.start()
        try:
            await scene()
        finally:
            await stage.supervisor.stop()
        assert stage.engines[-1].stopped
        assert not stage.time.sleepers  # nothing of it is left running

    asyncio.run(main())


def request(stage: Stage, id: str = "r") -> asyncio.Task[Any]:
    add = wire.Add(id, "lm", b"", SamplingParams())
    return asyncio.ensure_future(anext(stage.supervisor.client.stream(add)))


def test_requests_and_statistics_end_with_the_engine_and_the_next_one_serves() -> None:
    stage = Stage()

    async def scene() -> None:
        running = request(stage)
        asking = asyncio.ensure_future(stage.supervisor.client.stats())
        await settle()
        old = stage.engines[0]
        old.die()
        gap = request(stage, "in the gap")  # before the supervisor has even noticed
        for task in (running, asking, gap):
            with pytest.raises(EngineLost):
                await task
        await stage.time.pass_(0)
        assert stage.alive
        assert stage.supervisor.restarts == 1
        assert old.killed
        assert old.stopped
        assert [r.cards[0].room for r in stage.readies] == [0, 1]
        again = request(stage)
        await settle()
        old.reply(wire.Heard([wire.Spoken("r", 0, [9], None, "stop", 1, 0)]))  # a late word of the dead
        await settle()
        assert not again.done()
        stage.engines[1].reply(wire.Heard([wire.Spoken("r", 0, [5], None, "stop", 1, 0)]))
        assert (await again).ids == [5]

    play(stage, scene)


def test_waits_grow_and_are_forgotten_after_a_minute_of_health() -> None:
    stage = Stage(timeout=0)

    async def scene() -> None:
        waits = []
        for _ in range(8):
            stage.engines[-1].die()
            waits.append(await stage.seconds_until_next())
            await settle()
            assert stage.alive
        assert waits == [0, 1, 2, 4, 8, 16, 30, 30]
        await stage.time.pass_(60)
        stage.engines[-1].die()
        assert await stage.seconds_until_next() == 0

    play(stage, scene)


def test_stillborn_engines_wait_too() -> None:
    """An engine that says it is ready and is gone at once must not make a loop without waits."""
    stage = Stage("", "stillborn", "stillborn", "stillborn")

    async def scene() -> None:
        stage.engines[0].die()
        waits = [await stage.seconds_until_next() for _ in range(4)]
        assert waits == [0, 1, 2, 4]
        await settle()
        assert stage.alive
        assert stage.supervisor.restarts == 4

    play(stage, scene)


def test_the_first_start_is_tried_once() -> None:
    stage = Stage("refuse")
    with pytest.raises(UserError, match="no room"):
        play(stage, settle)
    assert len(stage.engines) == 1


def test_gives_up_after_refusals_in_a_row_only() -> None:
    fates = ["", *["refuse"] * (REFUSALS - 1), "fault", *["refuse"] * (REFUSALS - 1), ""]
    stage = Stage(*fates, *["refuse"] * REFUSALS)

    async def scene() -> None:
        stage.engines[-1].die()
        await stage.time.pass_(1_000)
        assert stage.alive  # the fault stood between the refusals
        assert not stage.supervisor.given_up
        stage.engines[-1].die()
        await stage.time.pass_(1_000)
        assert stage.supervisor.given_up
        assert not stage.alive
        assert len(stage.engines) == len(fates) + REFUSALS
        with pytest.raises(EngineLost):
            await request(stage)
        await stage.time.pass_(1_000)
        assert len(stage.engines) == len(fates) + REFUSALS

    play(stage, scene)


def test_a_hanging_engine_is_killed() -> None:
    stage = Stage("hang")

    async def scene() -> None:
        running = request(stage)
        await stage.time.pass_(TIMEOUT - 1)
        assert not running.done()
        assert not stage.engines[0].killed
        await stage.time.pass_(1)
        with pytest.raises(EngineLost):
            await running
        assert stage.engines[0].killed
        assert stage.alive
        await stage.time.pass_(10 * TIMEOUT)  # the next one answers
        assert stage.supervisor.restarts == 1

    play(stage, scene)


@pytest.mark.parametrize("when", ["at once", "while it starts", "while it waits", "dead and unnoticed"])
def test_stopping_at_any_point_starts_nothing_more(when: str) -> None:
    stage = Stage()

    async def scene() -> None:
        if when == "while it starts":
            stage.engines[0].die()
            while len(stage.engines) < 2:
                await asyncio.sleep(0)
                if stage.time.sleepers and stage.time.sleepers[0][0] == 0 and not stage.time.sleepers[0][1].done():
                    stage.time.sleepers[0][1].set_result(None)
        elif when == "while it waits":
            stage.engines[0].die()
            await stage.seconds_until_next()
            await settle()
            stage.engines[1].die()
            await settle()
        elif when == "dead and unnoticed":
            stage.engines[0].die()

    play(stage, scene)
    made = len(stage.engines)
    assert made == {"at once": 1, "while it starts": 2, "while it waits": 2, "dead and unnoticed": 1}[when]
    assert not any(e.up for e in stage.engines)
