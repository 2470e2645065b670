"""The real engine answers as the OpenAPI document says, here with few examples."""

from __future__ import annotations

import httpx
import openapi_spec_validator
import pytest

from frontend.test_serving import MODEL, Running
from models.common import embedded
from serve.described import CHECKS, attempt, operations

pytestmark = [pytest.mark.model, pytest.mark.slow]

EXAMPLES = 25
SERVED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "tokens": [1, 2], "n": 1}
THERE = {"id": MODEL, "name": "main.js"}
NEVER_200 = {
    "POST /v1/audio/transcriptions",  # nothing is served that hears
    "POST /v1/images/generations",  # or paints
    "DELETE /v1/requests/{id}",
    "POST /v1/requests/{id}/cancel",
    "POST /admin/services/{name}/reload",
}


def test_all_routes() -> None:
    embedded()
    server = Running("--max-tokens", "8")
    openapi_spec_validator.validate(server.http.get("/openapi.json").json())
    for name, operation in operations(server.url).items():
        names = {} if name.endswith("/reload") else THERE
        statuses = attempt(operation, EXAMPLES, SERVED, names)
        if 200 not in statuses and name not in NEVER_200:  # so few may all be wrong ones
            statuses += attempt(operation, 8 * EXAMPLES, SERVED, names)
        assert 200 in statuses or name in NEVER_200, (name, statuses)
    assert server.stop() == 0


def test_the_trace_of_an_engine_at_work() -> None:
    embedded()
    server = Running()
    trace = operations(server.url)["GET /engine/trace"]
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 4_000, "ignore_eos": True, "stream": True, "n": 4}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        told = trace.Case().call_and_validate(checks=CHECKS).json()
        assert told["steps"]
        assert [s for service in told["services"].values() for s in service["streams"]]
    assert server.stop() == 0
