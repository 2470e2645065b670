"""Embeddings and responses from one end to the other: the client's side of the link, then the whole server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pydantic
import pytest

from diastole import LLM
from diastole.frontend import wire
from diastole.frontend.client import EngineClient, EngineLost
from diastole.params import PoolParams
from diastole.types import UserError
from frontend.test_client import Script, run
from frontend.test_serving import MODEL, Running, eventually
from models.common import embedded

TEXTS = ["The cat sleeps on the sofa.", "Stock prices fell.", "word " * 700]


class Sum(pydantic.BaseModel):
    result: Literal[4, 5]


def wish(id: str = "r") -> wire.Embed:
    return wire.Embed(id, "lm", b"", PoolParams())


def test_an_answer_and_a_refusal_reach_who_asked() -> None:
    answers: dict[str, wire.Reply] = {
        "a": wire.Vector("a", b"1"),
        "b": wire.Refused("b", "too long", "prompt", "context_length_exceeded"),
    }
    script = Script(lambda c: [wire.Vector("nobody", b""), answers[c.id]] if isinstance(c, wire.Embed) else [])

    async def use(client: EngineClient) -> bytes:
        with pytest.raises(UserError, match="too long") as e:
            await client.embed(wish("b"))
        assert e.value.code == "context_length_exceeded"
        return await client.embed(wish("a"))

    assert run(script, use) == b"1"
    assert script.heard == [wish("b"), wish("a")]  # what has ended is not aborted


def test_cancelling_aborts_and_a_lost_engine_ends_it() -> None:
    script = Script(lambda c: [])

    async def use(client: EngineClient) -> None:
        first, second = (asyncio.ensure_future(client.embed(wish(id))) for id in "ab")
        await asyncio.sleep(0)
        assert len(client) == 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert script.heard[-1] == wire.Abort("a")
        script.reply(wire.Vector("a", b"late"))
        script.lose()
        for task in (second, client.embed(wish("c"))):
            with pytest.raises(EngineLost):
                await task
        assert len(client) == 0

    run(script, use)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    embedded()
    running = Running()
    yield running
    assert running.stop() == 0


@pytest.mark.model
@pytest.mark.slow
def test_vectors_over_http_are_those_of_the_library(server: Running) -> None:
    with LLM() as llm:
        want = llm.embed(TEXTS)
    made = server.openai.embeddings.create(model=MODEL, input=TEXTS)
    np.testing.assert_array_equal(np.array([d.embedding for d in made.data], np.float32), want)
    assert made.usage.prompt_tokens > 700
    half = server.openai.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=100).data[0].embedding
    assert len(half) == 100
    np.testing.assert_allclose(half, want[0, :100] / np.linalg.norm(want[0, :100]), atol=1e-6)
    card = server.http.get(f"/v1/models/{MODEL}").json()
    assert card["embeddings"]["dimensions"] == len(want[0])


@pytest.mark.model
@pytest.mark.slow
def test_leaving_while_many_are_read_frees_the_engine(server: Running) -> None:
    body = json.dumps({"model": MODEL, "input": ["word " * 2_000] * 40}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    head += "\r\nContent-Type: application/json"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as s:
        s.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: server.metric("num_requests_running") > 0, "nothing is read")
    eventually(lambda: server.metric("num_requests_running") == 0, "streams went on running")
    assert server.metric("num_requests_waiting") == 0
    assert server.metric("kv_cache_usage_perc") == 0
    assert 'finished_reason="abort"' in server.http.get("/metrics").text


@pytest.mark.model
@pytest.mark.slow
def test_responses_say_what_chat_says(server: Running) -> None:
    ask = "What is 2+2?"
    chat = server.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": ask}], temperature=0, max_tokens=40
    )
    whole = server.openai.responses.create(model=MODEL, input=ask, temperature=0, max_output_tokens=40)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status == "completed"
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    stream = server.openai.responses.create(model=MODEL, input=ask, temperature=0, max_output_tokens=40, stream=True)
    events = list(stream)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    parsed = server.openai.responses.parse(
        model=MODEL, input="What is 2+2?", text_format=Sum, temperature=0, max_output_tokens=100
    )
    assert isinstance(parsed.output_parsed, Sum)
