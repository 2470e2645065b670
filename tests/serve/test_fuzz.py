"""Malformed and odd bodies by the hundred: never a 5xx, always an error in the API's form, and the server goes on."""

import json

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve.fakes import Running
from serve.test_bad_input import JSON, error

PATHS = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**19, 2**63, -(2**63), 10**400, 1e308, -0.0, "echo", "user", "", "\ud800", "\x00"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": st.sampled_from(["user", "system", "tool", "assistant", "x"]) | SCALARS, "content": VALUES},
    ),
    max_size=3,
)
FIELDS = {
    name: VALUES
    for name in (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "logit_bias", "seed", "stop", "n", "stream", "stream_options", "logprobs", "top_logprobs", "ignore_eos",
        "stop_token_ids", "user", "echo", "suffix", "best_of", "tools", "response_format", "slo", "priority",
        "cache_salt", "max_tokens", "max_completion_tokens", "tokens", "chat_template", "return_token_strs",
    )
}  # fmt: skip
REQUESTS = st.fixed_dictionaries(
    {"model": st.just("echo")}, optional={"messages": MESSAGES | VALUES, "prompt": VALUES, **FIELDS}
)
GOOD = json.dumps(
    {
        "model": "echo",
        "messages": [{"role": "user", "content": 'añ\n"b"'}],
        "prompt": [[1, 2], [3]],
        "n": 1,
        "tokens": [],
    }
).encode()


def judge(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        error(reply)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=PATHS, body=REQUESTS)
def test_odd_values(shared: Running, path: str, body: dict) -> None:
    shared.service.reset()
    with httpx.Client(base_url=shared.url, timeout=20) as http:
        reply = http.post(path, content=json.dumps(body).encode(), headers=JSON)
    judge(reply)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data(), path=PATHS)
def test_damaged_bytes(shared: Running, data: st.DataObject, path: str) -> None:
    shared.service.reset()
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        if data.draw(st.booleans()):
            body[at:at] = data.draw(st.binary(max_size=6))
        else:
            del body[at : at + data.draw(st.integers(1, 30))]
    with httpx.Client(base_url=shared.url, timeout=20) as http:
        judge(http.post(path, content=bytes(body), headers=JSON))
