"""Structured output on the real model, through the official client: whatever it would like to say, it validates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from frontend.test_serving import MODEL, Running, ask, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXT = {"type": "string", "maxLength": 24}
WHOLE = {"type": "integer", "minimum": -1000, "maximum": 1000}


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def some(items: Any, most: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


SCHEMAS: dict[str, dict[str, Any]] = {
    "a person": record(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120}, member={"type": "boolean"}),
    "an address": record(
        street=TEXT, city=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"}, at=record(x=WHOLE, y=WHOLE)
    ),
    "a weather report": record(sky={"enum": ["clear", "cloudy", "rain"]}, celsius={"type": "number"}, wind=WHOLE),
    "three colours": some({"enum": ["red", "green", "blue", "black", "white"]}),
    "an order": record(id=WHOLE, lines=some(record(item=TEXT, count={"type": "integer", "minimum": 1, "maximum": 99}))),
    "a shape": {
        "anyOf": [
            record(kind={"const": "circle"}, radius=WHOLE),
            record(kind={"const": "square"}, side=WHOLE),
        ]
    },
    "a date": record(date={"type": "string", "format": "date"}, holiday={"type": ["string", "null"], "maxLength": 24}),
    "a list of lists": some(some(WHOLE, 2)),
    "a family": {
        "$defs": {"parent": record(name=TEXT), "child": record(name=TEXT, parents=some({"$ref": "#/$defs/parent"}, 2))},
        "$ref": "#/$defs/child",
    },
    "settings": {
        "type": "object",
        "properties": {
            "theme": {"enum": ["light", "dark"]},
            "size": {"type": "integer", "multipleOf": 2, "minimum": 2, "maximum": 64},
        },
        "required": ["theme"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    embedded()
    running = Running()
    yield running
    assert running.stop() == 0


def wanted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_two_hundred_answers_under_ten_schemas_validate(server: Running) -> None:
    def answer(work: tuple[int, str]) -> tuple[str, str]:
        seed, what = work
        choice = server.openai.chat.completions.create(
            **{**ask(f"Write {what} as JSON."), "temperature": 1.2, "seed": seed},
            max_tokens=400,
            response_format=wanted(SCHEMAS[what]),  # type: ignore[arg-type]
        ).choices[0]
        assert choice.finish_reason == "stop", (what, choice)
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMAS[what])
        return what, choice.message.content or ""

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, [(i, what) for what in SCHEMAS for i in range(20)], timeout=300))
    assert len(answers) == 200
    for what in SCHEMAS:
        assert len({text for w, text in answers if w == what}) > 2, f"always the same text for {what}"
    eventually(lambda: server.metric("kv_cache_usage_perc") == 0, "pages were not given back")


def test_streams_say_the_same(server: Running) -> None:
    more = {"max_tokens": 200, "seed": 5, "response_format": wanted(SCHEMAS["an order"])}
    whole = server.openai.chat.completions.create(**ask("Write an order."), **more)
    stream = server.openai.chat.completions.create(**ask("Write an order."), **more, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in stream)
    assert text == whole.choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMAS["an order"])


def test_json_objects_choices_patterns_and_grammars(server: Running) -> None:
    def said(**more: Any) -> str:
        made = server.openai.completions.create(model=MODEL, prompt="The answer is", max_tokens=300, seed=3, **more)
        assert made.choices[0].finish_reason == "stop"
        return made.choices[0].text

    made = server.openai.chat.completions.create(
        **ask("Answer in JSON: who are you?", max_tokens=500), response_format={"type": "json_object"}
    )
    if made.choices[0].finish_reason == "stop":  # nothing bounds an object without a schema but the length
        assert isinstance(json.loads(made.choices[0].message.content or ""), dict)
    assert said(extra_body={"guided_choice": ["certainly", "hardly"]}) in ("certainly", "hardly")
    assert re.fullmatch("[a-f]{4}-[0-9]+!", said(extra_body={"guided_regex": "[a-f]{4}-[0-9]{1,5}!"}))
    assert re.fullmatch("(ha){2,5}", said(extra_body={"grammar": 'root ::= "ha" "ha" "ha"? "ha"? "ha"?'}))


def test_choices_logprobs_and_stops_go_along(server: Running) -> None:
    made = server.openai.chat.completions.create(
        **{**ask("Write a colour."), "temperature": 1.5, "seed": 1},
        n=4,
        logprobs=True,
        top_logprobs=2,
        response_format=wanted(some({"enum": ["red", "green", "blue"]}, 2)),  # type: ignore[arg-type]
    )
    assert len(made.choices) == 4
    for choice in made.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), some({"enum": ["red", "green", "blue"]}, 2))
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert "".join(t.token for t in tokens).startswith(choice.message.content or "")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"response_format": wanted({"type": "foo"})}, "invalid_schema"),
        ({"response_format": wanted({"not": {"type": "string"}})}, "invalid_schema"),
        ({"response_format": wanted({"$ref": "#/nowhere"})}, "invalid_schema"),
        ({"extra_body": {"guided_regex": "(?<=a)b"}}, "invalid_grammar"),
        ({"extra_body": {"guided_grammar": "start: missing"}}, "invalid_grammar"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_followed_is_refused(server: Running, fields: dict[str, Any], code: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        server.openai.chat.completions.create(**ask("Hi"), **fields, stream=stream)
    assert e.value.code == code
    assert e.value.param in ("response_format", "guided_regex", "guided_grammar")
