"""The real engine answers as the OpenAPI document says, here with few examples."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openapi_spec_validator
import pytest

from frontend.test_serving import MODEL, Running
from models.common import embedded
from serve.described import attempt, operations

pytestmark = [pytest.mark.model, pytest.mark.slow]

EXAMPLES = 10
SERVED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "tokens": [1, 2], "n": 1}
THERE = {"id": MODEL, "name": "main.js"}
NEVER_200 = {"DELETE /v1/requests/{id}", "POST /v1/requests/{id}/cancel"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    embedded()
    running = Running("--max-tokens", "8")
    yield running
    assert running.stop() == 0


def test_all_routes(server: Running) -> None:
    openapi_spec_validator.validate(server.http.get("/openapi.json").json())
    for name, operation in operations(server.url).items():
        names = {} if name.endswith("/reload") else THERE
        statuses = attempt(operation, EXAMPLES, SERVED, names)
        assert 200 in statuses or name in NEVER_200 or name.endswith("/reload"), (name, statuses)


def test_the_trace_of_an_engine_at_work(server: Running) -> None:
    trace = operations(server.url)["GET /engine/trace"]
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 8, "ignore_eos": True, "stream": True, "n": 64}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as reply:
        next(reply.iter_lines())
        answer = trace.Case().call_and_validate()
        streams = [s for service in answer.json()["services"].values() for s in service["streams"]]
        assert answer.json()["steps"]
        assert streams
