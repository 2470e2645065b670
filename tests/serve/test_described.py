"""What the OpenAPI document allows and forbids, tried on the server."""

from __future__ import annotations

import pytest

from diastole.serve.routes import ROUTES
from serve.described import attempt, operations
from serve.fakes import Running

NAMES = [f"{route.method} {route.label}" for route in ROUTES]
EXAMPLES = 60
SERVED = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "tokens": [1, 2]}
THERE = {"id": "echo", "name": "main.js"}
NEVER_200 = {
    "POST /v1/audio/transcriptions",  # the fake hears nothing
    "POST /v1/images/generations",  # and paints nothing
    "DELETE /v1/requests/{id}",
    "POST /v1/requests/{id}/cancel",
    "POST /admin/services/{name}/reload",
}


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_as_the_document_says(server: Running, name: str) -> None:
    statuses = attempt(operations(server.url)[name], EXAMPLES, SERVED, THERE)
    assert (200 in statuses) == (name not in NEVER_200)
