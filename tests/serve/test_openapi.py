"""The OpenAPI document: valid, whole, and true in its bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import openapi_spec_validator
import pytest

from diastole.serve.routes import ROUTES
from serve.fakes import Running
from serve.test_chat import HELLO, wait_ready

PLACES = {
    "/v1/chat/completions": HELLO,
    "/v1/completions": {"model": "echo", "prompt": "hi"},
    "/v1/messages": {"model": "echo", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "echo", "input": "hi"},
    "/v1/embeddings": {"model": "echo", "input": "hi"},
}
BESIDE = {"top_logprobs": {"logprobs": True}}
MASKED = {"steps", "block_length", "min_steps"}  # which this model does not follow
UPPER = {"max_tokens", "max_completion_tokens", "max_output_tokens"}  # where the context bounds before


@pytest.fixture
def described(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def test_it_is_valid_and_has_every_route(described: dict[str, Any]) -> None:
    openapi_spec_validator.validate(described)
    told = {(m.upper(), path) for path, item in described["paths"].items() for m in item}
    assert told == {(r.method, r.label) for r in ROUTES}
    operations = [o for item in described["paths"].values() for o in item.values()]
    assert all(re.fullmatch(r".*\S\.", o["summary"]) for o in operations)
    ids = [o["operationId"] for o in operations]
    assert len(set(ids)) == len(ids)


def test_it_says_where_keys_are_needed(described: dict[str, Any]) -> None:
    assert described["paths"]["/v1/models"]["get"]["security"] == [{}, {"key": []}]
    with Running(api_key=("secret",)) as server:
        wait_ready(server)
        assert httpx.get(server.url + "/openapi.json").status_code == 401
        got = httpx.get(server.url + "/openapi.json", headers={"authorization": "Bearer secret"}).json()
        for route in ROUTES:
            security = got["paths"][route.label][route.method.lower()]["security"]
            path = route.label.replace("{name}", "main.js")
            open_ = httpx.request(route.method, server.url + path).status_code != 401
            assert (security == []) == open_, route.label
            assert security in ([], [{"key": []}])


def bounded(described: dict[str, Any]) -> Iterator[tuple[str, str, Any, bool]]:
    """Path, field, a value at a bound or beyond it, and whether it is within."""
    for path in PLACES:
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = described["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
        for field, said in schema["properties"].items():
            for one in said.get("anyOf", [said]):
                for value, within in edges(one):
                    yield path, field, value, within


def edges(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    step = 1 if schema.get("type") == "integer" else 1e-6
    for word, bad, good in (("minimum", -step, 0), ("maximum", step, 0), ("exclusiveMinimum", 0, step)):
        if word in schema:
            yield schema[word] + bad, False
            yield schema[word] + good, True
    if schema.get("type") == "string" and "minLength" in schema:
        yield "", False
        if "maxLength" in schema:
            yield "x" * schema["maxLength"], True
            yield "x" * (schema["maxLength"] + 1), False


def test_both_sides_of_every_bound(http: httpx.Client, described: dict[str, Any], server: Running) -> None:
    server.service.priorities = True
    cases = list(bounded(described))
    assert len(cases) > 100
    for path, field, value, within in cases:
        reply = http.post(path, json={**PLACES[path], **BESIDE.get(field, {}), field: value})
        if within and reply.status_code == 400 and field in UPPER:
            assert "context" in reply.json()["error"]["message"]
        elif within and field in MASKED:
            assert reply.json()["error"]["code"] == "unsupported_parameter"
        else:
            assert reply.status_code == (200 if within else 400), (path, field, value, within, reply.text[:300])
