"""Speech to text over ``/v1/realtime``, by OpenAI's own client, against what the live endpoint says of it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from diastole.config import Config, ServerConfig, ServiceConfig
from diastole.frontend.backend import Backend
from diastole.serve.run import Server
from live import small
from live.served import go, running

RATE = 24_000
PIECE = 4_800  # bytes
SAID = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ear") / "ear"
    small.written(small.conformer(), small.conformer_config(), out)
    return out


def bursts(seconds: Sequence[tuple[float, float]], total: float) -> bytes:
    """Noise from each to each, and silence else: 16 bits."""
    x = np.zeros(round(total * RATE))
    rng = np.random.default_rng(2)
    for start, end in seconds:
        lo, hi = round(start * RATE), round(end * RATE)
        x[lo:hi] = rng.normal(0, 0.1, hi - lo) * np.sin(np.arange(hi - lo) / 900)
    return (np.clip(x, -1, 1) * 32767).astype("<i2").tobytes()


SOUND = bursts([(0.3, 1.1), (1.4, 2.0)], 2.4)


class Served:
    def __init__(self, server: Server, backend: Backend) -> None:
        self.server, self.backend = server, backend
        self.url = f"ws://127.0.0.1:{server.port}/v1"

    def client(self, key: str = "x") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url.replace("ws", "http", 1), api_key=key, max_retries=0)

    async def used(self) -> int:
        link: Any = self.backend._engine.client._link
        for _ in range(200):  # a stream that is aborted is gone a step later
            used = int(link._host.engine.services[0].ledger.pools["cell"].used)
            if used == 0:
                break
            await asyncio.sleep(0.01)
        return used


@asynccontextmanager
async def served(model: Path, **settings: Any) -> AsyncIterator[Served]:
    config = Config(
        service={"ear": ServiceConfig(model=str(model), max_streams=4)}, server=ServerConfig(port=0, **settings)
    )
    async with running(config) as (server, backend):
        yield Served(server, backend)


def wished(model: str = "ear", turns: Any = None, **more: Any) -> dict[str, Any]:
    audio = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {"model": model}, "turn_detection": turns}
    return {"type": "transcription", "audio": {"input": {**audio, **more}}}


async def append(connection: Any, sound: bytes) -> None:
    for at in range(0, len(sound), PIECE):
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + PIECE]).decode())


async def until(connection: Any, kind: str, count: int = 1) -> list[Any]:
    events = []
    while count:
        event = await connection.recv()
        events.append(event)
        count -= event.type == kind
    return events


async def streamed(at: Served, sound: bytes, options: dict[str, Any]) -> list[dict[str, Any]]:
    """What the other endpoint says: events of kind final."""
    async with connect(f"{at.url}/streams/ear", max_size=None) as socket:
        hello = {"type": "hello", "rate": RATE, "channels": 1, "dtype": "int16", "resample": True, "options": options}
        await socket.send(json.dumps(hello))
        for start in range(0, len(sound), PIECE):
            await socket.send(sound[start : start + PIECE])
        await socket.send('{"type": "end"}')
        events = []
        try:
            async for text in socket:
                events.append(json.loads(text))
        except ConnectionClosed:
            pass
    return [e for e in events if e["type"] == "final"]


def test_what_a_client_commits_becomes_one_item(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            want = " ".join(e["text"] for e in await streamed(at, SOUND, {"endpoint_ms": 0}))
            assert want
            async with at.client().realtime.connect(extra_query={"intent": "transcription"}) as connection:
                created = await connection.recv()
                assert created.type == "session.created"
                await connection.session.update(session=wished())  # type: ignore[arg-type]
                updated = await connection.recv()
                assert updated.session.audio.input.turn_detection is None
                items = []
                for nth in range(2):
                    await append(connection, SOUND)
                    await connection.input_audio_buffer.commit()
                    events = await until(connection, f"{SAID}.completed")
                    committed = next(e for e in events if e.type == "input_audio_buffer.committed")
                    done = events[-1]
                    assert done.transcript == want
                    assert "".join(e.delta for e in events if e.type == f"{SAID}.delta") == want
                    assert {e.item_id for e in events} == {done.item_id} == {committed.item_id}
                    assert committed.previous_item_id == (items[-1] if items else None)
                    assert done.usage.seconds == pytest.approx(2.4, abs=0.05), nth
                    items.append(done.item_id)
            assert await at.used() == 0

    go(work)


def test_the_model_tells_where_utterances_end(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at:
            want = await streamed(at, SOUND, {"endpoint_ms": 240})
            async with at.client().realtime.connect(model="ear") as connection:
                await connection.session.update(
                    session=wished(turns={"type": "server_vad", "silence_duration_ms": 240})  # type: ignore[arg-type]
                )
                await append(connection, SOUND)
                await connection.input_audio_buffer.commit()  # what was begun is over
                events = await until(connection, f"{SAID}.completed", len(want))
            done = [e for e in events if e.type == f"{SAID}.completed"]
            assert [e.transcript for e in done] == [e["text"] for e in want]
            assert len({e.item_id for e in done}) == len(want)
            starts = [e.audio_start_ms for e in events if e.type == "input_audio_buffer.speech_started"]
            ends = [e.audio_end_ms for e in events if e.type == "input_audio_buffer.speech_stopped"]
            assert starts == [round(1000 * e["start"]) for e in want]
            assert ends == [round(1000 * e["end"]) for e in want]
            assert await at.used() == 0

    go(work)


def test_what_is_cleared_is_not_told(model: Path) -> None:
    async def work() -> None:
        async with served(model) as at, at.client().realtime.connect(model="ear") as connection:
            await connection.session.update(session=wished())  # type: ignore[arg-type]
            await until(connection, "session.updated")
            await append(connection, SOUND)
            await connection.input_audio_buffer.clear()
            await until(connection, "input_audio_buffer.cleared")
            await connection.input_audio_buffer.commit()
            error = (await until(connection, "error"))[-1].error
            assert error.code == "input_audio_buffer_commit_empty"
            assert await at.used() == 0

    go(work)


@pytest.mark.parametrize(
    ("event", "param", "word"),
    [
        ({"type": "response.create"}, "type", "transcription"),
        ({"type": "input_audio_buffer.append", "audio": "?!"}, "audio", "base64"),
        ({"type": "input_audio_buffer.append"}, "audio", "base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "feed", "whole samples"),
        ({"type": "session.update"}, "session", "session"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "transcription"),
        ({"type": "session.update", "session": wished("nobody")}, "model", "nobody"),
        ({"type": "session.update", "session": wished(turns={"type": "semantic_vad"})}, None, "server_vad"),
        ({"type": "session.update", "session": wished(format={"type": "audio/pcmu"})}, None, "audio/pcm"),
        ({"type": "session.update", "session": wished(format={"type": "audio/pcm", "rate": 3})}, None, "8000"),
        (
            {"type": "session.update", "session": wished(transcription={"model": "ear", "options": {"mood": 1}})},
            "mood",
            "latency_ms",
        ),
        ([], "type", "event"),
    ],
)
def test_what_is_wrong_is_told_and_harms_nothing(model: Path, event: Any, param: str | None, word: str) -> None:
    async def work() -> None:
        async with served(model) as at, connect(f"{at.url}/realtime?model=ear", max_size=None) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            await socket.send(json.dumps(event))
            told = json.loads(await socket.recv())
            assert told["type"] == "error"
            assert word in told["error"]["message"]
            assert param is None or told["error"]["param"] == param
            await socket.send(json.dumps({"type": "transcription_session.update", "session": {"turn_detection": None}}))
            while (told := json.loads(await socket.recv()))["type"] == "error":
                pass
            assert told["type"] == "transcription_session.updated"
            await socket.close()
            assert await at.used() == 0

    go(work)


def test_keys_are_asked_for(model: Path) -> None:
    async def work() -> None:
        async with served(model, api_key=("sesame",)) as at:
            async with connect(
                f"{at.url}/realtime", subprotocols=["realtime", "openai-insecure-api-key.wrong"]
            ) as socket:  # type: ignore[list-item]
                assert json.loads(await socket.recv())["error"]["code"] == "invalid_api_key"
            names: Any = ["realtime", "openai-insecure-api-key.sesame"]
            async with connect(f"{at.url}/realtime", subprotocols=names) as socket:
                assert socket.subprotocol == "realtime"
                assert json.loads(await socket.recv())["type"] == "session.created"
            async with at.client("sesame").realtime.connect(model="ear") as connection:
                assert (await connection.recv()).type == "session.created"

    go(work)
