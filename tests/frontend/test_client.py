"""The client side of a link, with an engine that is only a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from diastole.engine.trace import View
from diastole.frontend import wire
from diastole.frontend.client import EngineClient
from diastole.frontend.types import EngineLost, RequestEnded
from diastole.params import SamplingParams
from diastole.types import UserError


class Script:
    """A link that answers each command by a function."""

    def __init__(self, answer: Callable[[wire.Command], list[wire.Reply]]) -> None:
        self.answer, self.heard = answer, list[wire.Command]()
        self.up = False

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        self.reply, self.lose, self.up = on_reply, on_loss, True
        return wire.Ready([], "script")

    def put(self, command: wire.Command) -> None:
        self.heard.append(command)
        for reply in self.answer(command):
            self.reply(reply)

    async def stop(self) -> None:
        self.up = False

    def alive(self) -> bool:
        return self.up


def spoken(id: str, choice: int, finish: str | None = None) -> wire.Spoken:
    return wire.Spoken(id, choice, [5], None, finish, 3, 0)


def add(id: str = "r", n: int = 1) -> wire.Add:
    return wire.Add(id, "lm", b"", SamplingParams(n=n))


def run(script: Script, use: Callable[[EngineClient], object]) -> object:
    async def main() -> object:
        client = EngineClient(script)
        await client.start()
        return await use(client)  # type: ignore[misc]

    return asyncio.run(main())


def test_a_choice_that_ends_twice_does_not_end_another() -> None:
    """We end choice 0 for its stop string while the engine's own end of it is on its way."""
    script = Script(lambda c: [])

    async def use(client: EngineClient) -> list[tuple[int, str | None]]:
        said = []
        stream = client.stream(add(n=2))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        script.reply(wire.Heard([spoken("r", 0), spoken("r", 1)]))
        said.append(await task)
        client.end_choice("r", 0, "stop")
        script.reply(wire.Heard([spoken("r", 0, "length"), spoken("r", 1), spoken("r", 1, "stop")]))
        said += [s async for s in stream]
        return [(s.choice, s.finish) for s in said]

    got = run(script, use)
    assert got == [(0, None), (1, None), (0, "stop"), (0, "length"), (1, None), (1, "stop")]
    assert script.heard == [add(n=2), wire.Abort("r", "stop", 0)]


@pytest.mark.parametrize("finish", ["deadline", "error"])
def test_what_the_engine_ends_is_over_and_not_aborted(finish: str) -> None:
    script = Script(lambda c: [wire.Heard([spoken("r", 0)]), wire.Over("r", finish)])  # type: ignore[arg-type]

    async def use(client: EngineClient) -> str:
        with pytest.raises(RequestEnded) as e:
            async for _ in client.stream(add(n=2)):
                pass
        assert len(client) == 0
        return e.value.finish

    assert run(script, use) == finish
    assert script.heard == [add(n=2)]


def test_leaving_early_aborts() -> None:
    script = Script(lambda c: [wire.Heard([spoken("r", 0)])] if isinstance(c, wire.Add) else [])

    async def use(client: EngineClient) -> int:
        stream = client.stream(add())
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return len(client)

    assert run(script, use) == 0
    assert script.heard[-1] == wire.Abort("r")


def test_a_refusal_is_the_users_error_and_nothing_is_aborted() -> None:
    script = Script(lambda c: [wire.Refused("r", "too long", "prompt", "context_length_exceeded")])

    async def use(client: EngineClient) -> None:
        with pytest.raises(UserError, match="too long") as e:
            await anext(client.stream(add()))
        assert e.value.code == "context_length_exceeded"

    run(script, use)
    assert script.heard == [add()]


def view(last: int) -> View:
    return View(0.0, last, [], {})


def test_each_asker_gets_the_trace_it_asked_for() -> None:
    """Also when one of them has stopped waiting: its answer still comes, and is not given to the next."""
    script = Script(lambda c: [])

    async def use(client: EngineClient) -> list[int]:
        first, impatient, last = (asyncio.ensure_future(client.trace(since)) for since in (1, 2, 3))
        await asyncio.sleep(0)
        impatient.cancel()
        for command in script.heard:
            assert isinstance(command, wire.Trace)
            script.reply(wire.Traced(view(command.since)))
        return [(await first).last, (await last).last]

    assert run(script, use) == [1, 3]


def test_a_lost_engine_ends_everything_at_once() -> None:
    script = Script(lambda c: [])

    async def use(client: EngineClient) -> None:
        waiting = asyncio.ensure_future(anext(client.stream(add())))
        asking = asyncio.ensure_future(client.stats())
        watching = asyncio.ensure_future(client.trace(0))
        await asyncio.sleep(0)
        script.lose()
        for task in (waiting, asking, watching):
            with pytest.raises(EngineLost):
                await task
        with pytest.raises(EngineLost):
            await anext(client.stream(add("later")))
        with pytest.raises(EngineLost):
            await client.trace(0)
        assert not client.alive

    run(script, use)
