"""What HTTP says of requests that the engine ended: their time was up, or it failed on them."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from diastole.frontend.types import RequestEnded
from diastole.types import SLO
from serve.fakes import Running

CHAT, PLAIN, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
SAY = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "echo", "messages": SAY},
    PLAIN: {"model": "echo", "prompt": "hello"},
    MESSAGES: {"model": "echo", "max_tokens": 50, "messages": SAY},
    RESPONSES: {"model": "echo", "input": "hello"},
}
TOTAL = {"x-slo-total-ms": "2500"}


@pytest.mark.parametrize("path", BODIES)
def test_the_header_reaches_the_engine(server: Running, http: httpx.Client, path: str) -> None:
    assert http.post(path, json=BODIES[path], headers=TOTAL).status_code == 200
    assert server.service.asked[-1].slo == SLO(total=2.5)


def test_the_body_wins_and_the_other_promises_stay(server: Running, http: httpx.Client) -> None:
    for path, wish in ((CHAT, {"total_ms": 700, "ttft_ms": 90}), (RESPONSES, {"total_ms": 700, "ttft_ms": 90})):
        assert http.post(path, json={**BODIES[path], "slo": wish}, headers=TOTAL).status_code == 200
        assert server.service.asked[-1].slo == SLO(first=0.09, total=0.7)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "3600001"])
def test_wrong_times_are_refused(http: httpx.Client, value: str) -> None:
    reply = http.post(CHAT, json=BODIES[CHAT], headers={"x-slo-total-ms": value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-slo-total-ms")


def test_total_in_the_body_is_checked(http: httpx.Client) -> None:
    reply = http.post(CHAT, json={**BODIES[CHAT], "slo": {"total_ms": 0}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "slo.total_ms")


def last_events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


def test_every_api_says_that_time_was_up(server: Running, http: httpx.Client) -> None:
    server.service.finish = "deadline"
    for path in (CHAT, PLAIN):
        assert http.post(path, json=BODIES[path]).json()["choices"][0]["finish_reason"] == "deadline"
        chunks = last_events(http.post(path, json={**BODIES[path], "stream": True}).text)
        assert chunks[-1]["choices"][0]["finish_reason"] == "deadline"
    assert http.post(MESSAGES, json=BODIES[MESSAGES]).json()["stop_reason"] == "max_tokens"
    delta = last_events(http.post(MESSAGES, json={**BODIES[MESSAGES], "stream": True}).text)[-2]
    assert delta["delta"]["stop_reason"] == "max_tokens"
    whole = http.post(RESPONSES, json=BODIES[RESPONSES]).json()
    end = last_events(http.post(RESPONSES, json={**BODIES[RESPONSES], "stream": True}).text)[-1]
    assert end["type"] == "response.incomplete"
    for response in (whole, end["response"]):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "deadline"})
        assert response["output"][0]["content"][0]["text"] == "hello"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_before_the_first_token_it_is_an_error(server: Running, http: httpx.Client, path: str, stream: bool) -> None:
    server.service.late = True
    reply = http.post(path, json={**BODIES[path], "stream": stream})
    assert reply.status_code == 504  # nothing was streamed yet, so there is a status to say it with
    error = reply.json()["error"]
    assert error["type"] == "timeout_error"
    assert "total_ms" in error["message"]
    if path != MESSAGES:
        assert error["code"] == "deadline_exceeded"


def test_choices_that_had_no_word_yet_end_with_those_that_had(server: Running, http: httpx.Client) -> None:
    """Two prompts: one is answered in part, the other not at all."""
    server.service.late_prompts = {"b"}
    server.service.finish = "deadline"
    choices = http.post(PLAIN, json={"model": "echo", "prompt": ["a", "b"]}).json()["choices"]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("a", "deadline"), ("", "deadline")]


def test_embeddings(server: Running, http: httpx.Client) -> None:
    server.service.fault, server.service.fault_after = RequestEnded("deadline"), 0
    reply = http.post("/v1/embeddings", json={"model": "echo", "input": "hello"}, headers=TOTAL)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_inputs_that_begin_later_have_less_time(server: Running, http: httpx.Client) -> None:
    server.service.pace = 0.02
    inputs = [f"input {i}" for i in range(40)]
    wish = {"model": "echo", "input": inputs, "slo": {"total_ms": 60_000}}
    assert http.post("/v1/embeddings", json=wish).status_code == 200
    totals = [asked.slo.total or 0 for asked in server.service.asked if asked.slo is not None]
    assert len(totals) == 40
    assert max(totals) <= 60
    assert totals[-1] <= totals[0] - 0.03  # two rounds of others were before it


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [0, 3])
def test_a_fault_in_the_engine_costs_this_request(
    server: Running, http: httpx.Client, stream: bool, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.service.fault, server.service.fault_after = RequestEnded("error"), said
    with caplog.at_level(logging.ERROR):
        reply = http.post(CHAT, json={**BODIES[CHAT], "stream": stream})
        assert reply.status_code == (200 if stream and said else 500)
        error = (last_events(reply.text)[-1] if stream and said else reply.json())["error"]
        assert (error["type"], error["code"]) == ("api_error", "internal_error")
        assert error["message"].startswith("Internal error in this request")
        assert http.post("/v1/embeddings", json={"model": "echo", "input": "hello"}).status_code == 500
    assert not caplog.records  # the engine has told it
    server.service.reset()
    assert http.post(CHAT, json=BODIES[CHAT]).status_code == 200
