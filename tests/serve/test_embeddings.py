"""POST /v1/embeddings: shapes, the official client, and everything that is refused."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from diastole.types import UserError
from serve.fakes import CONTEXT, VOCAB, WIDTH, Running
from serve.test_bad_input import error
from serve.test_disconnect import connect, head

openai = pytest.importorskip("openai", reason="the openai client is not installed")

URL = "/v1/embeddings"
PLAIN: dict[str, Any] = {"model": "echo", "input": "hi"}


@pytest.fixture
def client(server: Running) -> Iterator["openai.OpenAI"]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def vector(first: int, last: int, length: int, dimensions: int = WIDTH) -> np.ndarray:
    """What the fake has for a prompt."""
    v = np.array([first + 1, last + 1, length, 1], np.float32)[:dimensions].astype(np.float64)
    return (v / np.linalg.norm(v)).astype(np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_openai_client(client: "openai.OpenAI", encoding: Any) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    made = client.embeddings.create(model="echo", input=["ab", "cde"], user="me", **more)
    assert (made.object, made.model) == ("list", "echo")
    assert [(d.object, d.index) for d in made.data] == [("embedding", 0), ("embedding", 1)]
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (3 + 4, 3 + 4)
    want = [vector(256, ord("b"), 3), vector(256, ord("e"), 4)]
    if encoding == "base64":
        got = [np.frombuffer(base64.b64decode(str(d.embedding)), "<f4") for d in made.data]
    else:
        got = [np.array(d.embedding) for d in made.data]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_floats_and_base64_are_the_same_numbers(http: httpx.Client) -> None:
    plain, coded = (
        http.post(URL, json={**PLAIN, "encoding_format": f}).json()["data"][0]["embedding"] for f in ("float", "base64")
    )
    np.testing.assert_array_equal(np.array(plain, np.float32), np.frombuffer(base64.b64decode(coded), "<f4"))


@pytest.mark.parametrize("given", [[5, 6, 7], [[5, 6, 7]]])
def test_token_ids(server: Running, http: httpx.Client, given: list[Any]) -> None:
    (made,) = http.post(URL, json={**PLAIN, "input": given}).json()["data"]
    np.testing.assert_allclose(made["embedding"], vector(5, 7, 3), atol=1e-6)
    asked = server.service.asked[-1]
    assert (asked.prompt, asked.params.kind, asked.slo) == ([5, 6, 7], "mean", None)


def test_dimensions_are_cut_and_have_length_one(http: httpx.Client) -> None:
    made = http.post(URL, json={**PLAIN, "dimensions": 2}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(made, vector(256, ord("i"), 3, 2), atol=1e-6)
    assert abs(np.linalg.norm(made) - 1) < 1e-6


def test_many_come_back_in_order_and_never_all_run_at_once(server: Running, http: httpx.Client) -> None:
    server.service.pace = 0.001
    inputs = [[i % VOCAB, 7 * i % VOCAB] for i in range(2_048)]
    made = http.post(URL, json={**PLAIN, "input": inputs}, headers={"x-llm-d-slo-ttft-ms": "500"}).json()
    want = [vector(a, b, 2) for a, b in inputs]
    np.testing.assert_allclose([d["embedding"] for d in made["data"]], want, atol=1e-6)
    assert len({a.id for a in server.service.asked}) == 2_048
    assert server.service.asked[0].slo is not None
    assert 1 < server.service.most_running <= 16


def test_the_model_card_says_what_they_are(http: httpx.Client) -> None:
    card = http.get("/v1/models/echo").json()["embeddings"]
    assert card["dimensions"] == WIDTH
    assert "hidden states" in card["kind"]


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "invalid_type"),
    ({"input": ""}, "input", "empty_prompt"),
    ({"input": []}, "input", "empty_array"),
    ({"input": ["a", "b", "c", ""]}, "input[3]", "empty_prompt"),
    ({"input": [[1], []]}, "input[1]", "empty_prompt"),
    ({"input": [1, "a"]}, "input", "invalid_type"),
    ({"input": [1.5]}, "input[0]", "invalid_type"),
    ({"input": [258]}, "input", "invalid_token_id"),
    ({"input": [[1], [-1]]}, "input[1]", "invalid_token_id"),
    ({"input": [[1], [2**70]]}, "input[1]", "invalid_type"),
    ({"input": ["a"] * 2_049}, "input", "invalid_value"),
    ({"input": [1] * (CONTEXT + 1)}, "input", "context_length_exceeded"),
    ({"input": ["a", "x" * CONTEXT]}, "input[1]", "context_length_exceeded"),
    ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
    ({"encoding_format": 1}, "encoding_format", "invalid_type"),
    ({"dimensions": 0}, "dimensions", "invalid_value"),
    ({"dimensions": WIDTH + 1}, "dimensions", "invalid_value"),
    ({"dimensions": 10**400}, "dimensions", "invalid_value"),
    ({"dimensions": 1.5}, "dimensions", "invalid_type"),
    ({"dimensions": True}, "dimensions", "invalid_type"),
    ({"user": 1}, "user", "invalid_type"),
    ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms", "invalid_value"),
    ({"input_type": "query"}, "input_type", "unsupported_parameter"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "unsupported_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_refused(server: Running, http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    reply = http.post(URL, json={**PLAIN, **change})
    assert reply.status_code == 400, reply.text
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == ("invalid_request_error", param, code), got
    assert server.service.asked == []


def test_a_prompt_as_long_as_the_context_is_read(http: httpx.Client) -> None:
    assert http.post(URL, json={**PLAIN, "input": [1] * CONTEXT}).json()["usage"]["prompt_tokens"] == CONTEXT


def test_faults_and_late_refusals(server: Running, http: httpx.Client) -> None:
    many = {**PLAIN, "input": ["a"] * 40}
    server.service.refusal = UserError("too long after all", param="prompt", code="context_length_exceeded")
    reply = http.post(URL, json=many)
    assert (reply.status_code, error(reply)["code"]) == (400, "context_length_exceeded")
    server.service.reset()
    server.service.fault_after = 0
    reply = http.post(URL, json=many)
    assert (reply.status_code, error(reply)["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    server.service.reset()
    server.service.wide = float("nan")  # type: ignore[assignment]
    reply = http.post(URL, json=many)
    assert (reply.status_code, error(reply)["code"]) == (500, "engine_error")
    server.service.reset()
    assert http.post(URL, json=many).status_code == 200


def test_a_client_that_leaves_frees_all_its_inputs(
    server: Running, eventually: Callable[[Callable[[], object]], None]
) -> None:
    server.service.endless = True
    body = b'{"model": "echo", "input": [%s]}' % b",".join([b'"a"'] * 20)
    with connect(server) as s:
        s.sendall(head(Content_Length=len(body)).replace(b"/v1/chat/completions", URL.encode()) + body)
        eventually(lambda: len(server.service.running) == 16)
    eventually(lambda: not server.service.running)
    assert len(server.service.aborted) == 16
    eventually(lambda: server.server.gate.inside == 0)
