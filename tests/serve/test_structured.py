"""From the fields of requests to a grammar, on a backend that only notes what it is asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from diastole.params import Grammar
from diastole.types import UserError
from serve.fakes import Running

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OBJECT = Grammar("json_schema", '{"type": "object"}')


def chat(http: httpx.Client, **more: Any) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], **more}
    return http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None}, None),
        ({"grammar": ""}, None),
        ({"response_format": {"type": "json_object"}}, OBJECT),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar("json_schema", json.dumps(SCHEMA)),
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"response_format": {"type": "regex", "regex": "a+"}}, Grammar("regex", "a+")),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a"'}}, Grammar("lark", 'start: "a"')),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json_object": True}}, OBJECT),
        ({"structured_outputs": {"choice": ['say "a"', "b\n"]}}, Grammar("lark", 'start: "say \\"a\\"" | "b\\n"')),
        ({"guided_regex": "[0-9]"}, Grammar("regex", "[0-9]")),
        ({"guided_json": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"json_schema": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA))),
    ],
)
def test_names_of_one_wish(
    server: Running, http: httpx.Client, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    assert chat(http, **fields).status_code == 200
    assert server.service.asked[-1].params.grammar == grammar
    body = {"model": "echo", "prompt": "hi", **fields}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert server.service.asked[-1].params.grammar == grammar


def test_gbnf_is_rewritten(server: Running, http: httpx.Client) -> None:
    assert chat(http, grammar='root ::= "yes" | "no" [0-9]+').status_code == 200
    grammar = server.service.asked[-1].params.grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    assert "start" in grammar.text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": ["text"]}}, "response_format.type", "invalid_value"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}},
            "response_format.json_schema.schema",
            "invalid_schema",
        ),
        ({"guided_json": "{"}, "guided_json", "invalid_schema"),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"guided_choice": [""]}, "guided_choice", "invalid_value"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice", "invalid_value"),
        ({"guided_regex": ""}, "guided_regex", "missing_required_parameter"),
        ({"guided_regex": "a" * 300_000}, "guided_regex", "invalid_grammar"),
        ({"grammar": "root ::= ("}, "grammar", "invalid_grammar"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar", "invalid_grammar"),
        ({"grammar": "a ::= " + "b" * 70_000}, "grammar", "unsupported_parameter"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "invalid_value"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ],
)
def test_wrong_wishes_name_the_field(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    answer = chat(http, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error["message"]


def test_what_the_engine_says_of_a_grammar_names_the_field(server: Running, http: httpx.Client) -> None:
    """The engine compiles: its refusal comes before the answer has begun, whole or streamed."""
    server.service.refusal = UserError(
        "the JSON schema cannot be followed: why", param="grammar", code="invalid_schema"
    )
    for stream in (False, True):
        answer = chat(http, guided_json=SCHEMA, stream=stream)
        assert answer.status_code == 400
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("guided_json", "invalid_schema")


def test_a_dead_end_is_told(server: Running, http: httpx.Client) -> None:
    server.service.finish = "error"
    answer = chat(http, guided_regex="a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "grammar_dead_end")
    events = chat(http, guided_regex="a", stream=True).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "grammar_dead_end"
    assert events[-2] == "data: [DONE]"
