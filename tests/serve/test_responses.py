"""POST /v1/responses: the official client, unchanged, and everything that is refused."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from diastole.params import Grammar
from serve.fakes import Running
from serve.test_bad_input import error

openai = pytest.importorskip("openai", reason="the openai client is not installed")

URL = "/v1/responses"
TEXT = "Grüße, 世界 🌍!"
HELLO: dict[str, Any] = {"model": "echo", "input": TEXT}
SEQUENCE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.fixture
def client(server: Running) -> Iterator["openai.OpenAI"]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """Events, whose names and numbers must fit."""
    got = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        got.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + got[-1]["type"]
    assert [e["sequence_number"] for e in got] == list(range(len(got)))
    return got


def test_whole(client: "openai.OpenAI") -> None:
    made = client.responses.create(model="echo", input=TEXT, metadata={"a": "b"}, user="me", store=False)
    size = len(TEXT.encode())
    assert made.output_text == TEXT
    assert (made.status, made.error, made.incomplete_details) == ("completed", None, None)
    assert made.id.startswith("resp_")
    assert (made.object, made.model, made.metadata, made.user) == ("response", "echo", {"a": "b"}, "me")
    assert made.model_extra == {"store": False}
    (item,) = made.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (
        size + 1,
        size,
        2 * size + 1,
    )
    assert made.usage.input_tokens_details.cached_tokens == (size + 1) // 2


def test_stream(client: "openai.OpenAI") -> None:
    got = list(client.responses.create(model="echo", input=TEXT, stream=True))
    kinds = [e.type for e in got]
    assert list(dict.fromkeys(kinds)) == [*SEQUENCE, "response.completed"]
    assert "".join(e.delta for e in got if e.type == "response.output_text.delta") == TEXT
    assert [e.sequence_number for e in got] == list(range(len(got)))
    assert got[0].response.status == got[1].response.status == "in_progress"
    last = got[-1].response
    assert last.output_text == TEXT
    assert got[0].response.id == last.id
    assert {e.item_id for e in got if hasattr(e, "item_id")} == {last.output[0].id}
    whole = client.responses.create(model="echo", input=TEXT)
    assert last.usage == whole.usage


def test_the_clients_stream_helper(client: "openai.OpenAI") -> None:
    with client.responses.stream(model="echo", input=TEXT) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == TEXT


def test_a_limit_makes_it_incomplete(client: "openai.OpenAI", http: httpx.Client) -> None:
    made = client.responses.create(model="echo", input=TEXT, max_output_tokens=2)
    assert (made.output_text, made.status, made.max_output_tokens) == ("Gr", "incomplete", 2)
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete"
    last = events(http.post(URL, json={**HELLO, "max_output_tokens": 2, "stream": True}).text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["output"][0]["content"][0]["text"] == "Gr"


def test_a_conversation_goes_on_with_what_was_answered(server: Running, client: "openai.OpenAI") -> None:
    first = client.responses.create(model="echo", input="a")
    said: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        *first.output,
        {"type": "message", "role": "user", "content": "c"},
    ]
    second = client.responses.create(model="echo", input=said, instructions="be brief", temperature=0.5, top_p=0.9)
    assert second.output_text == "be brief\na\nb\na\nc"
    assert (second.instructions, second.temperature, second.top_p) == ("be brief", 0.5, 0.9)
    asked = server.service.asked[-1]
    assert (asked.params.temperature, asked.params.top_p, asked.params.max_tokens) == (0.5, 0.9, None)


def test_neutral_fields_and_what_completions_know(server: Running, http: httpx.Client) -> None:
    neutral = {
        "tools": [], "tool_choice": "auto", "truncation": "disabled", "store": None, "background": False, "include": [],
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": None},
        "parallel_tool_calls": True, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s",
        "previous_response_id": None,
    }  # fmt: skip
    more = {"seed": 3, "top_k": 5, "stop": ["zzz"], "cache_salt": "pepper", "slo": {"ttft_ms": 100}}
    assert http.post(URL, json={**HELLO, **neutral, **more}).status_code == 200
    asked = server.service.asked[-1]
    assert (asked.params.seed, asked.params.top_k, asked.params.stop, asked.salt) == (3, 5, ("zzz",), "pepper")
    assert asked.slo is not None
    assert asked.slo.first == 0.1


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "invalid_type"),
    ({"input": ""}, "input", "empty_prompt"),
    ({"input": []}, "input", "empty_array"),
    ({"input": [1]}, "input[0]", "invalid_type"),
    ({"input": [{"content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "invalid_value"),
    ({"input": [{"role": "user", "content": []}]}, "input[0].content", "invalid_value"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].type", "unsupported_parameter"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
        "input[0].content[0].type",
        "unsupported_content",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "input",
        "template_error",
    ),
    ({"input": "x" * 4096}, "input", "context_length_exceeded"),
    ({"max_output_tokens": 4096}, "max_output_tokens", "context_length_exceeded"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": 10**400}, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": "8"}, "max_output_tokens", "invalid_type"),
    ({"max_tokens": 8}, "max_tokens", "unsupported_parameter"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"instructions": 1}, "instructions", "invalid_type"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
    ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
    ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.json_schema", "missing_required_parameter"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages", "unsupported_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_refused(server: Running, http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    for stream in (False, True):
        reply = http.post(URL, json={**HELLO, "stream": stream, **change})
        assert reply.status_code == 400, reply.text
        got = error(reply)
        if code == "invalid_type" and param.startswith("metadata"):
            assert got["param"].startswith("metadata")
        else:
            assert got["param"] == param
        assert (got["type"], got["code"]) == ("invalid_request_error", code), got
    assert server.service.asked == []


def test_a_fault_after_the_start_is_the_last_event(server: Running, http: httpx.Client) -> None:
    server.service.fault_after = 3
    *before, last = events(http.post(URL, json={**HELLO, "stream": True}).text)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(last)
    assert last["response"]["id"] == before[0]["response"]["id"]
    assert {e["type"] for e in before} == set(SEQUENCE[:5])


def test_errors_before_the_start_have_a_status(server: Running, http: httpx.Client, client: "openai.OpenAI") -> None:
    server.service.fault_after = 0
    for stream in (False, True):
        reply = http.post(URL, json={**HELLO, "stream": stream})
        assert reply.status_code == 500
        assert error(reply)["code"] == "internal_error"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input=TEXT)


def test_an_abort_is_no_answer(server: Running, http: httpx.Client) -> None:
    server.service.finish = "abort"
    assert http.post(URL, json=HELLO).status_code == 503
    assert events(http.post(URL, json={**HELLO, "stream": True}).text)[-1]["type"] == "response.failed"


def test_an_empty_answer_has_all_its_events(http: httpx.Client) -> None:
    wish = {"model": "echo", "input": "stop here", "stop": "s", "stream": True}
    got = events(http.post(URL, json=wish).text)
    assert [e["type"] for e in got] == [*SEQUENCE[:4], *SEQUENCE[5:], "response.completed"]
    assert got[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_leaving_a_stream(
    server: Running, client: "openai.OpenAI", eventually: Callable[[Callable[[], object]], None]
) -> None:
    server.service.endless = True
    server.service.pace = 0.001
    with client.responses.create(model="echo", input=TEXT, stream=True) as stream:
        next(iter(stream))
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 1


def test_the_text_may_be_asked_to_have_a_form(server: Running, http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    reply = http.post(URL, json={**HELLO, "text": {"format": form}})
    assert reply.json()["text"]["format"] == form
    assert server.service.asked[-1].params.grammar == Grammar("json_schema", json.dumps(schema))
