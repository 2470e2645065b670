"""A second real client, unchanged: langchain-openai."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from frontend.test_serving import MODEL, Running
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

pytest.importorskip("langchain_openai")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    embedded()
    running = Running()
    yield running
    assert running.stop() == 0


def chat_model(server: Running) -> Any:
    os.environ["LANGSMITH_TRACING"] = "false"
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=60, seed=1)


def test_it_chats_whole_and_in_pieces(server: Running) -> None:
    model = chat_model(server)
    messages = [("system", "You are a helpful AI assistant."), ("human", "What is 2+2?")]
    whole = model.invoke(messages)
    assert whole.content
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(c.content for c in model.stream(messages)) == whole.content
    assert [m.content for m in model.batch([messages, messages])] == [whole.content] * 2


def test_it_gets_structured_output(server: Running) -> None:
    schema = {
        "title": "Colour",
        "type": "object",
        "properties": {"name": {"enum": ["red", "green"]}, "warm": {"type": "boolean"}},
        "required": ["name", "warm"],
        "additionalProperties": False,
    }
    made = chat_model(server).with_structured_output(schema, method="json_schema").invoke("Name a colour.")
    assert made["name"] in ("red", "green")
    assert isinstance(made["warm"], bool)


def test_completions(server: Running) -> None:
    from langchain_openai import OpenAI

    model = OpenAI(base_url=f"{server.url}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=12)
    text = model.invoke("One, two, three,")
    assert "four" in text
    assert "".join(model.stream("One, two, three,")) == text
