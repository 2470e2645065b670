"""Tools in chat completions, on a backend that says what the test wants, cut into odd pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from diastole.chat.tools import LLAMA, MISTRAL, Format
from diastole.params import Grammar
from diastole.types import UserError
from serve.fakes import Running

URL = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
ASK = [{"role": "user", "content": "How is it in Zürich?"}]
ARGUMENTS = '{"city": "Zürich 🌧"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
NOW = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
CUTS = [1, 3, 7, 1000]


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    wish: dict[str, Any] = {"model": "echo", "messages": ASK, "tools": [WEATHER, TIME], **more}
    return client.chat.completions.create(**wish)


@pytest.mark.parametrize("cut", CUTS)
def test_a_whole_answer_with_calls(server: Running, client: openai.OpenAI, cut: int) -> None:
    server.service.says, server.service.cut = f"Let me look.\n{CALL}\n{NOW}", cut
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look.\n"
    first, second = choice.message.tool_calls
    assert (first.type, first.function.name, first.function.arguments) == ("function", "weather", ARGUMENTS)
    assert (second.function.name, second.function.arguments) == ("time", "{}")
    assert re.fullmatch("call_[0-9a-f]{24}", first.id)
    assert first.id != second.id
    [(_, told)] = server.service.told
    assert told[0] == WEATHER
    assert told[1]["function"]["parameters"]["type"] == "object"


def test_calls_alone_have_null_content_and_no_finish_of_their_own_when_cut_short(
    server: Running, client: openai.OpenAI
) -> None:
    server.service.says = CALL
    assert ask(client).choices[0].message.content is None
    choice = ask(client, max_tokens=50).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content == CALL.encode()[:50].decode()


@pytest.mark.parametrize("cut", CUTS)
def test_a_streamed_answer_with_calls(server: Running, client: openai.OpenAI, cut: int) -> None:
    server.service.says, server.service.cut = f"Let me look.\n{CALL}\n{NOW}", cut
    content, calls, finishes = "", {}, []
    for chunk in ask(client, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        for piece in choice.delta.tool_calls or ():
            if piece.index not in calls:
                assert (piece.type, piece.function.arguments) == ("function", "")
                calls[piece.index] = [piece.id, piece.function.name, ""]
            else:
                assert (piece.id, piece.function.name) == (None, None)
                calls[piece.index][2] += piece.function.arguments
        finishes += [choice.finish_reason] if choice.finish_reason else []
    assert content == "Let me look.\n"
    assert finishes == ["tool_calls"]
    assert [calls[i][1:] for i in (0, 1)] == [["weather", ARGUMENTS], ["time", "{}"]]
    assert all(re.fullmatch("call_[0-9a-f]{24}", c[0]) for c in calls.values())


def test_the_clients_own_helper_collects_the_stream(server: Running, client: openai.OpenAI) -> None:
    server.service.says, server.service.cut = CALL, 5
    with client.chat.completions.stream(model="echo", messages=ASK, tools=[WEATHER]) as stream:  # type: ignore[list-item]
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == ARGUMENTS


@pytest.mark.parametrize(
    ("format", "says"),
    [
        (LLAMA, f'{{"name": "weather", "parameters": {ARGUMENTS}}}'),
        (MISTRAL, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}]'),
    ],
)
def test_the_models_own_format(server: Running, client: openai.OpenAI, format: Format, says: str) -> None:
    server.service.tool_format, server.service.says = format, says
    assert ask(client).choices[0].message.tool_calls[0].function.arguments == ARGUMENTS


def test_choices_have_calls_of_their_own(server: Running, client: openai.OpenAI) -> None:
    server.service.says = CALL
    choices = ask(client, n=2).choices
    assert [c.message.content for c in choices] == ["<0>", "<1>"]
    assert len({c.message.tool_calls[0].id for c in choices}) == 2


@pytest.mark.parametrize("says", ["<tool_call>{'name'}</tool_call>", '<tool_call>{"name": "other", "arguments": {}}'])
def test_what_is_no_call_is_text(server: Running, client: openai.OpenAI, says: str) -> None:
    server.service.says = says
    choice = ask(client).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (says, None, "stop")
    text = "".join(c.choices[0].delta.content or "" for c in ask(client, stream=True))
    assert text == says


def test_log_probabilities_are_all_there(server: Running, client: openai.OpenAI) -> None:
    server.service.says, server.service.cut = CALL, 4
    size = len(CALL.encode())
    assert len(ask(client, logprobs=True).choices[0].logprobs.content) == size
    chunks = list(ask(client, logprobs=True, stream=True))
    assert sum(len(c.choices[0].logprobs.content) for c in chunks if c.choices[0].logprobs) == size


def test_none_tells_of_no_tools_and_reads_no_calls(server: Running, client: openai.OpenAI) -> None:
    server.service.says = CALL
    choice = ask(client, tool_choice="none").choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert server.service.told[-1][1] is None


def test_one_call_at_most(server: Running, client: openai.OpenAI) -> None:
    server.service.says = CALL + NOW
    assert len(ask(client, parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    assert len(ask(client).choices[0].message.tool_calls) == 2


@pytest.mark.parametrize(
    ("more", "in_grammar", "not_in_grammar"),
    [
        ({"tool_choice": "required"}, ["call_1:", '"city"', "{0,15}"], ["TEXT"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["call_1:"], ["{0,15}"]),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, ["time"], ["weather", "{0,15}"]),
        ({"tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]}, ["TEXT", '"city"'], []),
    ],
)
def test_what_binds_the_text_becomes_a_grammar(
    server: Running, client: openai.OpenAI, more: dict[str, Any], in_grammar: list[str], not_in_grammar: list[str]
) -> None:
    ask(client, **more)
    grammar = server.service.asked[-1].params.grammar
    assert isinstance(grammar, Grammar)
    assert grammar.kind == "lark"
    assert all(word in grammar.text for word in in_grammar), grammar.text
    assert not any(word in grammar.text for word in not_in_grammar), grammar.text


def test_auto_binds_nothing(server: Running, client: openai.OpenAI) -> None:
    ask(client)
    ask(client, tool_choice="auto")
    assert [a.params.grammar for a in server.service.asked] == [None, None]


def test_a_conversation_with_calls_and_results(server: Running, client: openai.OpenAI) -> None:
    server.service.says = CALL
    message = ask(client).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    server.service.says = "It rains."
    assert ask(client, messages=[*ASK, message, result]).choices[0].message.content == "It rains."
    messages, _ = server.service.told[-1]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": json.loads(ARGUMENTS)}
    assert messages[1]["content"] == ""
    assert messages[2] == {**result, "name": "weather"}


def test_a_grammar_that_the_engine_refuses_names_the_tools(server: Running, http: httpx.Client) -> None:
    server.service.refusal = UserError("the grammar cannot be followed", param="grammar", code="invalid_grammar")
    reply = http.post(URL, json={"model": "echo", "messages": ASK, "tools": [WEATHER], "tool_choice": "required"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")


F = {"name": "f"}


def function(**change: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {**F, **change}}]


def said(**change: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", **change}}
    return [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"function": F}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
    ({"tools": "f"}, "tools", "invalid_type"),
    ({"tools": function(name="")}, "tools[0].function.name", "invalid_value"),
    ({"tools": function(name="a b")}, "tools[0].function.name", "invalid_value"),
    ({"tools": function(name="é")}, "tools[0].function.name", "invalid_value"),
    ({"tools": function(name="f\n")}, "tools[0].function.name", "invalid_value"),
    ({"tools": function(name="x" * 65)}, "tools[0].function.name", "invalid_value"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "invalid_value"),
    ({"tools": function(parameters=[])}, "tools[0].function.parameters", "invalid_schema"),
    ({"tools": function(parameters="object")}, "tools[0].function.parameters", "invalid_schema"),
    ({"tools": function(parameters={"type": "array"})}, "tools[0].function.parameters", "invalid_schema"),
    ({"tools": function(parameters={"properties": {"a": 1}})}, "tools[0].function.parameters", "invalid_schema"),
    ({"tools": function(parameters={"required": "a"})}, "tools[0].function.parameters", "invalid_schema"),
    ({"tools": [x for i in range(129) for x in function(name=f"f{i}")]}, "tools", "invalid_value"),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "required", "tools": []}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "function", "function": F}}, "tool_choice", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": "weather"}, "tool_choice", "invalid_value"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": F}},
        "tool_choice.function.name",
        "invalid_value",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice.type", "unsupported_parameter"),
    (
        {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tools",
        "invalid_value",
    ),
    ({"tools": [WEATHER], "tool_choice": "required", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ({"messages": said(arguments="{")}, "messages[1].tool_calls[0].function.arguments", "invalid_value"),
    ({"messages": said(arguments="[]")}, "messages[1].tool_calls[0].function.arguments", "invalid_value"),
    ({"messages": said(arguments={})}, "messages[1].tool_calls[0].function.arguments", "invalid_type"),
    (
        {"messages": [*said(), {"role": "tool", "content": "x"}]},
        "messages[2].tool_call_id",
        "missing_required_parameter",
    ),
    (
        {"messages": [*said(), {"role": "tool", "content": "x", "tool_call_id": "2"}]},
        "messages[2].tool_call_id",
        "invalid_value",
    ),
    ({"messages": [{**said()[1], "role": "user", "content": "x"}]}, "messages[0].tool_calls", "invalid_value"),
]


@pytest.mark.parametrize(("change", "param", "code"), BAD, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_wrong_requests_name_the_field(
    server: Running, http: httpx.Client, change: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post(URL, json={"model": "echo", "messages": ASK, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
    assert param.rsplit(".", 1)[-1].split("[")[0] in error["message"]
    assert server.service.asked == []
