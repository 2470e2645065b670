"""POST /v1/messages: Anthropic's shapes, spoken to with its own client and without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.fakes import CONTEXT, FakeBackend, Running
from serve.test_chat import wait_ready

anthropic = pytest.importorskip("anthropic", reason="the anthropic client is not installed")

URL = "/v1/messages"
ASK = [{"role": "user", "content": "How is it in Zürich?"}]
PLAIN = {"model": "echo", "max_tokens": 500, "messages": ASK}
TOOL = {"name": "weather", "description": "Says it.", "input_schema": {"type": "object", "properties": {}}}
INPUT = {"city": "Zürich 🌧"}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(INPUT, ensure_ascii=False)}}}\n</tool_call>'


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=10) as client:
        yield client


def test_a_whole_answer(server: Running, client: Any) -> None:
    reply = client.messages.create(
        **PLAIN, system="Be kind.", extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    )
    assert reply.id.startswith("msg_")
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", "echo")
    assert [b.text for b in reply.content] == ["Be kind.\nHow is it in Zürich?"]
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    size = len("Be kind.\nHow is it in Zürich?".encode())
    usage = reply.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == size + 1
    assert usage.cache_read_input_tokens == (size + 1) // 2
    assert usage.output_tokens == size
    asked = server.service.asked[-1].params
    assert (asked.temperature, asked.top_p, asked.top_k, asked.max_tokens) == (0.5, 0.9, 5, 500)


def test_why_it_ended(server: Running, client: Any) -> None:
    reply = client.messages.create(**{**PLAIN, "max_tokens": 3})
    assert (reply.stop_reason, reply.stop_sequence, reply.content[0].text) == ("max_tokens", None, "How")
    wish = {**PLAIN, "stop_sequences": ["zzz", " in "]}
    reply = client.messages.create(**wish)
    assert (reply.stop_reason, reply.stop_sequence, reply.content[0].text) == ("stop_sequence", " in ", "How is it")
    with client.messages.stream(**wish) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence, final.content[0].text) == ("stop_sequence", " in ", "How is it")


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_the_events_of_text_and_a_call(server: Running, http: httpx.Client, cut: int) -> None:
    server.service.says, server.service.cut = f"Let me look.\n{CALL}\n", cut
    reply = http.post(URL, json={**PLAIN, "tools": [TOOL], "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    got = events(reply.text)
    kinds = [e["type"] for e in got]
    assert [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "content_block_start",
        "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    begun = got[0]["message"]
    assert (begun["content"], begun["stop_reason"], begun["role"]) == ([], None, "assistant")
    starts = [e for e in got if e["type"] == "content_block_start"]
    assert [e["index"] for e in starts] == [0, 1]
    assert starts[0]["content_block"] == {"type": "text", "text": ""}
    block = starts[1]["content_block"]
    assert re.fullmatch("toolu_[0-9a-f]{24}", block.pop("id"))
    assert block == {"type": "tool_use", "name": "weather", "input": {}}
    deltas = [e for e in got if e["type"] == "content_block_delta"]
    assert "".join(e["delta"]["text"] for e in deltas if e["index"] == 0) == "Let me look.\n"
    assert json.loads("".join(e["delta"]["partial_json"] for e in deltas if e["index"] == 1)) == INPUT
    assert got[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert got[-2]["usage"]["output_tokens"] == len(server.service.says.encode())


def test_the_client_collects_calls_and_sends_results_back(server: Running, client: Any) -> None:
    server.service.says, server.service.cut = f"Hm.{CALL}", 7
    whole = client.messages.create(**PLAIN, tools=[TOOL])
    with client.messages.stream(**PLAIN, tools=[TOOL]) as stream:
        streamed = stream.get_final_message()
    for reply in (whole, streamed):
        assert reply.stop_reason == "tool_use"
        assert [b.type for b in reply.content] == ["text", "tool_use"]
        assert (reply.content[0].text, reply.content[1].name, reply.content[1].input) == ("Hm.", "weather", INPUT)
    id = whole.content[1].id
    result = {"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": "rain"}]}
    failed = {"type": "tool_result", "tool_use_id": id, "content": "no", "is_error": True}
    back = [{"role": "user", "content": [result, failed, {"type": "text", "text": "Well?"}]}]
    server.service.says = "It rains."
    talk = [*ASK, {"role": "assistant", "content": whole.content}, *back]
    assert client.messages.create(**{**PLAIN, "messages": talk}, tools=[TOOL]).content[0].text == "It rains."
    messages, tools = server.service.told[-1]
    assert tools == [
        {
            "type": "function",
            "function": {"name": "weather", "description": "Says it.", "parameters": TOOL["input_schema"]},
        }
    ]
    function = {"name": "weather", "arguments": INPUT}
    assert messages[1] == {
        "role": "assistant",
        "content": "Hm.",
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": id, "name": "weather", "content": "rain"},
        {"role": "tool", "tool_call_id": id, "name": "weather", "content": "Error: no"},
        {"role": "user", "content": "Well?"},
    ]


def test_choices_of_tools(server: Running, client: Any) -> None:
    server.service.says = CALL * 2
    for choice, bound in (
        ({"type": "auto"}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "weather"}, True),
    ):
        client.messages.create(**PLAIN, tools=[TOOL], tool_choice=choice)
        assert (server.service.asked[-1].params.grammar is not None) is bound
    once = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(client.messages.create(**PLAIN, tools=[TOOL], tool_choice=once).content) == 1
    reply = client.messages.create(**PLAIN, tools=[TOOL], tool_choice={"type": "none"})
    assert (reply.content[0].text, reply.stop_reason, server.service.told[-1][1]) == (CALL * 2, "end_turn", None)


def test_count_tokens(client: Any) -> None:
    counted = client.messages.count_tokens(model="echo", messages=ASK, system=[{"type": "text", "text": "Be kind."}])
    assert counted.input_tokens == 1 + len("Be kind.\nHow is it in Zürich?".encode())


def test_fields_that_change_nothing(client: Any) -> None:
    marked = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
    more = {
        "cache_control": {"type": "ephemeral"},
        "thinking": {"type": "disabled"},
        "service_tier": "auto",
        "metadata": {"user_id": "me"},
    }
    assert client.messages.create(**{**PLAIN, "messages": marked}, **more).content[0].text == "hi"


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": CONTEXT}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_k": "x"}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"container": "x"}, "container"),
    ({"whatever": 1}, "whatever"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}, *ASK]}, "messages[0].role"),
    ({"messages": [*ASK, {"role": "assistant", "content": "It"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    (block(type="image", source={}), "messages[0].content[0].type"),
    (block(type="document", source={}), "messages[0].content[0].type"),
    (block(type="thinking", thinking="x"), "messages[0].content[0].type"),
    (block(type="tool_use", id="1", name="f", input={}), "messages[0].content[0].type"),
    (block(type="text"), "messages[0].content[0].text"),
    (block(type="tool_result", content="x"), "messages[0].content[0].tool_use_id"),
    (block(type="tool_result", tool_use_id="1", content="x"), "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}, *ASK]}, "content[0].name"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools[0].input_examples"),
    ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
]


def error(reply: httpx.Response) -> dict[str, str]:
    body = reply.json()
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return body["error"]


@pytest.mark.parametrize(("change", "field"), BAD, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_wrong_requests_name_the_field(server: Running, http: httpx.Client, change: dict[str, Any], field: str) -> None:
    reply = http.post(URL, json={**PLAIN, **change})
    assert reply.status_code == 400, reply.text
    got = error(reply)
    assert got["type"] == "invalid_request_error"
    assert field in got["message"]
    assert server.service.asked == []


def test_errors_have_their_classes_and_shape(server: Running, http: httpx.Client, client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**PLAIN, extra_body={"temperature": -1})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**PLAIN, "model": "nobody"})
    assert error(http.post(URL, content=b"{", headers={"content-type": "application/json"}))["type"]
    assert error(http.get(URL))["type"] == "invalid_request_error"
    assert error(http.get(URL + "/x"))["type"] == "not_found_error"
    big = http.post(URL, content=b" " * (5 * 2**20), headers={"content-type": "application/json"})
    assert (big.status_code, error(big)["type"]) == (413, "request_too_large")
    server.service.fault_after = 0
    assert error(http.post(URL, json=PLAIN))["type"] == "api_error"
    server.service.fault_after = 3
    *_, last = events(http.post(URL, json={**PLAIN, "stream": True}).text)
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert "secret" not in last["error"]["message"]
    with pytest.raises(anthropic.APIStatusError), client.messages.stream(**PLAIN) as stream:
        stream.get_final_message()


def test_keys_and_pings() -> None:
    with Running(FakeBackend(), api_key=("right",), ping_seconds=0.05) as server:
        wait_ready(server)
        with httpx.Client(base_url=server.url, timeout=10) as http:
            for headers, status in (
                ({"x-api-key": "right"}, 200),
                ({"authorization": "Bearer right"}, 200),
                ({"x-api-key": "wrong"}, 401),
                ({"authorization": "Bearer wrong", "x-api-key": "right"}, 401),
                ({}, 401),
            ):
                reply = http.post(URL, json=PLAIN, headers=headers)
                assert reply.status_code == status, headers
                if status == 401:
                    assert error(reply)["type"] == "authentication_error"
            assert http.get("/v1/models", headers={"x-api-key": "right"}).status_code == 401
            server.service.pace = 0.3
            wish = {**PLAIN, "max_tokens": 2, "stream": True}
            text = http.post(URL, json=wish, headers={"x-api-key": "right"}).text
    kinds = [e["type"] for e in events(text)]
    assert kinds[0] == "message_start"
    assert kinds.count("ping") >= 2
    assert kinds[-1] == "message_stop"


def test_leaving_a_stream_ends_it(server: Running, client: Any, eventually: Any) -> None:
    server.service.endless, server.service.pace = True, 0.001
    with client.messages.create(**PLAIN, stream=True) as stream:
        next(iter(stream))
    eventually(lambda: server.service.aborted and not server.service.running)
