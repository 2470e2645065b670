"""Live streams over WebSocket, on a real server with a small model."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from diastole.client import stream
from diastole.config import Config, ServerConfig, ServiceConfig
from diastole.frontend.backend import Backend
from diastole.serve.run import Server
from diastole.types import Array, UserError
from live import small
from live.served import go, running

CHANNELS, RATE, STRIDE, WINDOW = 5, 100.0, 25, 101


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("brain") / "brain"
    net = small.classifier()
    net.register_buffer("covariance", torch.eye(CHANNELS))
    small.written(net, small.classifier_config(), out)
    return out


class Served:
    def __init__(self, server: Server, backend: Backend) -> None:
        self.server, self.backend = server, backend
        self.url = f"http://127.0.0.1:{server.port}"

    def open(self, model: str = "brain", **more: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.server.port}/v1/streams/{model}", max_size=None, **more)

    async def used(self) -> int:
        """Cells that streams hold."""
        link: Any = self.backend._engine.client._link
        return int(link._host.engine.services[0].ledger.pools["cell"].used)


@asynccontextmanager
async def served(model: Path, **settings: Any) -> AsyncIterator[Served]:
    config = Config(
        service={"brain": ServiceConfig(model=str(model), max_streams=4)}, server=ServerConfig(port=0, **settings)
    )
    async with running(config) as (server, backend):
        yield Served(server, backend)


async def hello(socket: ClientConnection, **more: Any) -> dict[str, Any]:
    await socket.send(json.dumps({"type": "hello", **more}))
    return json.loads(await socket.recv())  # type: ignore[no-any-return]


async def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    """All events until the connection is closed."""
    events = []
    with suppress(ConnectionClosed):
        async for text in socket:
            events.append(json.loads(text))
    return events


def labels(events: Sequence[dict[str, Any]]) -> list[tuple[float, Any]]:
    return [(e["end"], e["probabilities"]) for e in events if e["type"] == "label"]


def expected(model: Path, x: Array) -> list[tuple[float, Any]]:
    from diastole.bench.streaming import opened
    from diastole.kernels.table import load

    readings = small.readings(opened(str(model), load(1)), x, [len(x)])
    return [(round(r.end, 6), r.data["probabilities"]) for r in readings]


X = small.noise(260, CHANNELS, 3)


def test_a_stream_gives_what_the_model_finds(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            ready = await hello(socket, rate=RATE, channels=CHANNELS, chunks=True)
            assert ready["type"] == "ready"
            assert ready["unit_ms"] == 250
            assert ready["options"]["align"] == "stored"
            for i in range(0, len(X), 37):
                await socket.send(X[i : i + 37].tobytes())
            await socket.send('{"type": "end"}')
            events = await rest(socket)
            assert labels(events) == expected(model, X)
            assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
            done = events[-1]
            assert (done["type"], done["seconds"], done["lost_samples"]) == ("done", 2.6, 0)
            assert done["chunks"] == sum(e["chunks"] for e in events if e["type"] == "chunk") == 11
            assert all(e["latency_ms"] >= 0 for e in events if e["type"] == "label")
            assert await at.used() == 0

    go(work)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float64"])
def test_other_numbers_and_orders_of_channels(model: Path, dtype: str) -> None:
    async def work() -> None:
        whole = np.round(X * 1000)
        order = [3, 0, 1, 4, 2]
        async with served(model) as at, at.open() as socket:
            await hello(socket, channels=[f"ch{i}" for i in order], dtype=dtype, scale=0.001)
            await socket.send(whole[:, order].astype(f"<{np.dtype(dtype).str[1:]}").tobytes())
            await socket.send('{"type": "end"}')
            found = labels(await rest(socket))
        want = expected(model, (whole.astype(np.float32) * np.float32(0.001)).astype(np.float32))
        assert [at for at, _ in found] == [at for at, _ in want]
        for (_, a), (_, b) in zip(found, want, strict=True):
            assert a == pytest.approx(b, abs=2e-4)

    go(work)


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"rate": 250}, "rate", "takes 100 samples a second, not 250"),
        ({"rate": -1, "resample": True}, "rate", "1 to 10 million"),
        ({"channels": 3}, "channels", "takes 5 channels"),
        ({"channels": ["ch0", "ch1", "ch2", "ch3", "Cz"]}, "channels", "ch4 are missing"),
        ({"channels": ["ch0"] * 5}, "channels", "named twice"),
        ({"dtype": "float16"}, "hello", "float16"),
        ({"colour": "red"}, "hello", "colour"),
        ({"options": {"smoth": 0.5}}, "smoth", "did you mean 'smooth'"),
        ({"options": {"align": "mine"}}, "align", "stored, running or none"),
        ({"lost": "never"}, "lost", "wait, conceal or drop"),
        ({"patience": -1}, "patience", "0 to 60"),
        ({"deadline_ms": -5}, "deadline", "0 to 3600"),
        ({"scale": 0}, "scale", "other than 0"),
        ({"units": "T"}, "units", "takes uV"),
        ({"units": "kg"}, "units", "takes uV"),
        ({"resume": "nobody's"}, "resume", "no stream waits"),
    ],
    ids=str,
)
def test_wrong_hellos_are_refused_by_name(model: Path, wrong: Any, param: str, said: str) -> None:
    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            event = await hello(socket, **wrong)
            assert (event["type"], event["param"], event["fatal"]) == ("error", param, True)
            assert said in event["message"]
            assert await rest(socket) == []
            assert await at.used() == 0

    go(work)


@pytest.mark.parametrize(("units", "of"), [("uV", 1.0), ("µV", 1.0), ("mV", 1e3), ("V", 1e6), ("", 1.0)])
def test_what_comes_in_other_units_is_put_into_the_models(model: Path, units: str, of: float) -> None:
    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            await hello(socket, units=units)
            await socket.send((X / np.float32(of)).tobytes())
            await socket.send('{"type": "end"}')
            found = labels(await rest(socket))
        want = expected(model, (X / np.float32(of)) * np.float32(of))
        assert [at for at, _ in found] == [at for at, _ in want]
        np.testing.assert_allclose(*([list(p.values()) for _, p in each] for each in (found, want)), atol=1e-5)

    go(work)


@pytest.mark.parametrize("first", [b"\0" * 20, "nothing", "[1]", '{"type": "end"}'])
def test_what_is_no_hello_is_refused(model: Path, first: Any) -> None:
    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            await socket.send(first)
            assert json.loads(await socket.recv())["type"] == "error"
            with pytest.raises(ConnectionClosed):
                await socket.recv()

    go(work)


def test_hostile_pieces_harm_nobody(model: Path) -> None:
    """NaN, half a sample, absurd numbers: told, and the stream goes on as if they had not come; so does another one."""

    async def work() -> None:
        async with served(model) as at, at.open() as socket, at.open() as other:
            await hello(socket)
            await hello(other)
            bad = X[:4].copy()
            bad[1, 2] = np.nan
            await socket.send(X[:100].tobytes())
            for piece in (bad.tobytes(), X[:1].tobytes()[:-1], np.full((1, 5), 1e35, np.float32).tobytes()):
                await socket.send(piece)
            await socket.send(X[100:].tobytes())
            await other.send(X.tobytes())
            for each in (socket, other):
                await each.send('{"type": "end"}')
            events = await rest(socket)
            assert [e["code"] for e in events if e["type"] == "error"] == ["invalid_chunk"] * 3
            assert labels(events) == labels(await rest(other)) == expected(model, X)

    go(work)


@pytest.mark.parametrize("lost", ["conceal", "drop", "wait"])
def test_pieces_that_are_late_or_lost(model: Path, lost: str) -> None:
    def piece(lo: int, hi: int) -> bytes:
        return lo.to_bytes(8, "little") + X[lo:hi].tobytes()

    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            await hello(socket, indexed=True, lost=lost, patience=0.3)
            for lo, hi in ((0, 100), (130, 150), (100, 130), (150, 180), (200, 260)):  # one late, one lost
                await socket.send(piece(lo, hi))
            await socket.send(piece(0, 5))  # again
            await socket.send((10**15).to_bytes(8, "little") + X[:1].tobytes())
            await socket.send('{"type": "end"}')
            events = await rest(socket)
        done = events[-1]
        assert [e["code"] for e in events if e["type"] == "error"] == ["invalid_chunk"]
        if lost == "wait":
            assert (done["lost_samples"], done["late_samples"]) == (20, 5)
            filled = X.copy()
            filled[180:200] = 0
            assert labels(events) == expected(model, filled)
        else:
            assert done["lost_samples"] >= 30 + 20  # the late piece came when nobody waited for it
            assert done["late_samples"] >= 30 + 5 - 20
            assert any(e["type"] == "gap" for e in events) == (lost == "drop")

    go(work)


def test_a_lost_connection_is_taken_up_again(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            async with at.open() as socket:
                token = (await hello(socket))["resume"]
                await socket.send(X[:150].tobytes())
                first = [json.loads(await socket.recv()), json.loads(await socket.recv())]
                socket.transport.abort()
            await asyncio.sleep(0.05)
            async with at.open() as socket:
                again = await hello(socket, resume=token, after=first[0]["seq"])
                assert (again["type"], again["received"]) == ("resumed", 150)
                await socket.send(X[again["received"] :].tobytes())
                await socket.send('{"type": "end"}')
                events = await rest(socket)
            assert labels([first[0], *events]) == expected(model, X)
            async with at.open() as socket:
                assert (await hello(socket, resume=token))["code"] == "stream_not_found"
            assert await at.used() == 0

    go(work)


def test_what_a_resampler_still_holds_has_been_received(model: Path) -> None:
    """A client that resumes sends from where the server is: what its resampler holds back counts, so does a piece that
    was refused."""

    async def work() -> None:
        async with served(model) as at:
            async with at.open() as socket:
                token = (await hello(socket, rate=333.0, resample=True))["resume"]
                await socket.send(X[:7].tobytes())
                await socket.send(np.full((3, 5), np.nan, np.float32).tobytes())
                assert json.loads(await socket.recv())["code"] == "invalid_chunk"
            async with at.open() as socket:
                assert (await hello(socket, rate=333.0, resample=True, resume=token))["received"] == 10

    go(work)


def test_a_stream_nobody_comes_back_to_is_let_go(model: Path) -> None:
    async def work() -> None:
        async with served(model, stream_resume_seconds=0.05) as at:
            async with at.open() as socket:
                await hello(socket)
                await socket.send(X[:150].tobytes())
                socket.transport.abort()
            while await at.used():
                await asyncio.sleep(0.01)

    go(work)


def test_an_idle_stream_ends(model: Path) -> None:
    async def work() -> None:
        async with served(model, stream_idle_seconds=0.05) as at, at.open() as socket:
            await hello(socket)
            events = await rest(socket)
            assert (events[-1]["code"], events[-1]["fatal"]) == ("idle", True)
            while await at.used():
                await asyncio.sleep(0.01)

    go(work)


def test_a_thousand_opens_and_closes_leak_nothing(model: Path) -> None:
    async def work() -> None:
        async with served(model, stream_resume_seconds=0) as at:
            for i in range(1000):
                async with at.open() as socket:
                    await hello(socket)
                    if i % 3 == 1:
                        await socket.send(X[:60].tobytes())
                    if i % 3 == 2:
                        socket.transport.abort()
            while await at.used():
                await asyncio.sleep(0.01)
            async with at.open() as socket:  # as before
                await hello(socket)
                await socket.send(X.tobytes())
                await socket.send('{"type": "end"}')
                assert labels(await rest(socket)) == expected(model, X)
            assert len(at.backend._engine.client) == 0

    go(work)


def test_pieces_sent_again_and_again_hold_nobody_up(model: Path) -> None:
    """Ten minutes of the same second, numbered: no answer will come, and yet the stream goes on."""

    async def work() -> None:
        async with served(model) as at, at.open() as socket:
            await hello(socket, indexed=True)
            first = (0).to_bytes(8, "little") + X[:100].tobytes()
            for _ in range(600):
                await socket.send(first)
            await socket.send((100).to_bytes(8, "little") + X[100:].tobytes())
            await socket.send('{"type": "end"}')
            events = await rest(socket)
            assert labels(events) == expected(model, X)
            assert events[-1]["late_samples"] == 599 * 100

    go(work)


def test_who_finds_no_room_is_told(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            sockets = [await at.open() for _ in range(4)]
            for socket in sockets:
                assert (await hello(socket))["type"] == "ready"
                await socket.send(X[:30].tobytes())
            while await at.used() < 4:
                await asyncio.sleep(0.01)
            async with at.open() as one_more:
                event = await hello(one_more)
                assert (event["code"], event["fatal"]) == ("overloaded", True)
                assert "4 live streams are open" in event["message"]
            await sockets[0].send('{"type": "end"}')
            await rest(sockets[0])
            async with at.open() as again:
                assert (await hello(again))["type"] == "ready"
            for socket in sockets:
                await socket.close()

    go(work)


def test_who_may_connect(model: Path) -> None:
    async def work() -> None:
        async with served(model, api_key=("secret",), cors_origins=("https://lab.example.org",)) as at:
            own = at.url
            for origin, welcome in ((own, True), ("https://lab.example.org", True), ("https://evil.example", False)):
                if not welcome:
                    with pytest.raises(InvalidStatus):
                        await at.open(origin=origin)
                    continue
                async with at.open(origin=origin) as socket:
                    assert (await hello(socket, api_key="secret"))["type"] == "ready"
            async with at.open() as socket:
                assert (await hello(socket))["code"] == "invalid_api_key"
            async with at.open(additional_headers={"Authorization": "Bearer secret"}) as socket:
                assert (await hello(socket))["type"] == "ready"
            async with at.open("nobody", additional_headers={"Authorization": "Bearer secret"}) as socket:
                assert (await hello(socket))["code"] == "model_not_found"
        async with served(model) as at:
            with pytest.raises(InvalidStatus):  # a page elsewhere whose name points here
                await at.open(additional_headers={"Host": "evil.example"})

    go(work)


def test_a_server_that_stops_says_goodbye(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            socket = await at.open()
            await hello(socket)
            at.server.stop()
            at.server.stop()
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001

    go(work)


def test_the_client_takes_up_a_lost_connection_by_itself(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            cut = asyncio.Event()

            async def pieces() -> AsyncIterator[Array]:
                for i in range(0, len(X), 20):
                    if i == 140:
                        await cut.wait()
                    yield X[i : i + 20]

            events = []
            async for event in stream(at.url, "brain", pieces()):
                events.append(event)
                if event["type"] == "label" and not cut.is_set():
                    cut.set()
                    for connection in list(at.server._uvicorn.server_state.connections):
                        connection.transport.abort()
            assert labels(events) == expected(model, X)
            assert [e["type"] for e in (events[0], events[-1])] == ["ready", "done"]

            async def nothing() -> AsyncIterator[Array]:
                yield X[:0]

            with pytest.raises(UserError, match="did you mean 'smooth'"):
                async for _ in stream(at.url, "brain", nothing(), options={"smoth": 1}):
                    pass

    go(work)


def test_numbered_pieces_of_the_client_with_a_gap(model: Path) -> None:
    """The connection is lost once, too: what is sent again has its numbers."""
    gap = 10_000  # samples

    async def work() -> None:
        async with served(model) as at:
            cut = asyncio.Event()

            async def pieces() -> AsyncIterator[tuple[int, Array]]:
                for i in range(0, len(X), 20):
                    if i == 140:
                        await cut.wait()
                    yield i + (gap if i >= 160 else 0), X[i : i + 20]

            events = []
            async for event in stream(at.url, "brain", pieces(), lost="drop"):
                events.append(event)
                if event["type"] == "label" and not cut.is_set():
                    cut.set()
                    for connection in list(at.server._uvicorn.server_state.connections):
                        connection.transport.abort()
            assert [e["type"] for e in events].count("gap") == 1
            behind = [(round(end + (160 + gap) / RATE, 6), label) for end, label in expected(model, X[160:])]
            assert labels(events) == [*expected(model, X[:150]), *behind]  # ten samples are no whole unit

    go(work)


def test_what_the_source_of_a_client_ends_with_is_raised_behind_its_answers(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:

            async def pieces() -> AsyncIterator[Array]:
                yield X
                raise UserError("the cable is out", param="source")

            events: list[dict[str, Any]] = []

            async def listen() -> None:
                async for event in stream(at.url, "brain", pieces()):
                    events.append(event)

            with pytest.raises(UserError, match="the cable is out"):
                await listen()
            assert events[-1]["type"] == "done"
            assert labels(events) == expected(model, X)

    go(work)


def test_a_service_is_loaded_anew_beside_its_streams(model: Path, tmp_path: Path) -> None:
    place = shutil.copytree(model, tmp_path / "brain")

    async def reload(at: Served, **changes: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(f"{at.url}/admin/services/brain/reload", json=changes)

    async def heard(socket: ClientConnection, x: Array) -> list[tuple[float, Any]]:
        await socket.send(x.tobytes())
        await socket.send('{"type": "end"}')
        return labels(await rest(socket))

    async def work() -> None:
        async with served(place) as at, at.open() as old, at.open() as older:
            link: Any = at.backend._engine.client._link
            for socket in (old, older):
                await hello(socket, rate=RATE, channels=CHANNELS)
                await socket.send(X[:130].tobytes())
            reply = await reload(at, max_streams=2)
            assert (reply.status_code, reply.json()) == (
                200,
                {"object": "service", "name": "brain", "status": "reloaded"},
            )
            assert len(link._host.engine.services) == 2
            async with at.open() as new:
                await hello(new, rate=RATE, channels=CHANNELS)
                assert await heard(new, X) == expected(model, X)
            for socket in (old, older):  # what ran goes on where it was
                assert await heard(socket, X[130:]) == expected(model, X)
            async with at.open() as new:
                await hello(new, rate=RATE, channels=CHANNELS)
                assert len(link._host.engine.services) == 1
                assert link._host.engine.services[0].ledger.most == 2
                config = json.loads((place / "config.json").read_text())
                (place / "config.json").write_text(json.dumps({**config, "rate": 2 * RATE}))
                changed = await reload(at)
                assert (changed.status_code, changed.json()["error"]["code"]) == (400, "model_changed")
                assert "takes 25 samples of" in changed.json()["error"]["message"]
                assert await heard(new, X) == expected(model, X)

    go(work)
