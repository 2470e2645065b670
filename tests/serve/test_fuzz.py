"""Malformed and odd bodies by the hundred: never a 5xx, always an error in the API's form, and the server goes on."""

import json
import re

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve import test_messages
from serve.test_bad_input import JSON, error

PATHS = st.sampled_from(
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"]
)
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
        optional={
            "role": st.sampled_from(["user", "system", "tool", "assistant", "x"]) | SCALARS,
            "content": VALUES,
            "tool_calls": st.just([{"id": "1", "function": {"name": "f", "arguments": "{}"}}]) | VALUES,
            "tool_call_id": st.just("1") | SCALARS,
        },
    ),
    max_size=3,
)
FIELDS = re.findall(
    r"\w+",
    """
    temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty logit_bias seed stop n
    stream stream_options logprobs top_logprobs ignore_eos stop_token_ids user echo suffix best_of tools
    repetition_detection response_format slo priority cache_salt max_tokens max_completion_tokens tokens chat_template
    return_token_strs input instructions max_output_tokens metadata text store truncation encoding_format dimensions
    tool_choice parallel_tool_calls allow_approximate_prefill
""",
)
# Likely to be served as they are, so that odd fields meet more than the first check.
SOUND = st.fixed_dictionaries(
    {
        "model": st.just("echo"),
        "messages": st.just([{"role": "user", "content": "añ"}]) | MESSAGES,
        "prompt": st.sampled_from(["añ", ["a", "b"], [1, 2], [[1], [2, 3]]]),
        "tokens": st.lists(st.integers(0, 257), max_size=3),
        "input": st.sampled_from(["añ", [1, 2], ["a", "b"], [{"role": "user", "content": "añ"}]]),
    },
    optional={
        "stream": st.booleans(),
        "n": st.integers(1, 3),
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(1, 9),
        "stop": st.text(min_size=1, max_size=3),
        "echo": st.booleans(),
        "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
    },
)
ODD = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2)


GOOD = json.dumps(
    {
        "model": "echo",
        "messages": [{"role": "user", "content": 'añ\n"b"'}],
        "prompt": [[1, 2], [3]],
        "n": 1,
        "tokens": [],
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "añ"}]}],
    }
).encode()


def judge(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    assert "internal_error" not in reply.text  # in an event stream's 200 neither
    if reply.status_code >= 400:
        error(reply)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=PATHS, sound=SOUND, odd=ODD)
def test_odd_values(http: httpx.Client, path: str, sound: dict, odd: dict) -> None:
    if path == "/tokenize":
        del sound["messages"]  # it takes only one of the two
    if path in ("/v1/responses", "/v1/embeddings"):  # they refuse what belongs to the other paths
        sound = {k: v for k, v in sound.items() if k not in ("messages", "prompt", "max_tokens", "n", "echo")}
    judge(http.post(path, content=json.dumps({**sound, **odd}).encode(), headers=JSON))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data(), path=PATHS)
def test_damaged_bytes(http: httpx.Client, data: st.DataObject, path: str) -> None:
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        if data.draw(st.booleans()):
            body[at:at] = data.draw(st.binary(max_size=6))
        else:
            del body[at : at + data.draw(st.integers(1, 30))]
    judge(http.post(path, content=bytes(body), headers=JSON))


BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "image"]) | SCALARS},
        optional={
            "text": st.text(max_size=5) | VALUES,
            "id": st.just("1") | SCALARS,
            "name": st.just("f") | SCALARS,
            "input": VALUES,
            "tool_use_id": st.just("1") | SCALARS,
            "content": VALUES,
        },
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": BLOCKS | VALUES}), max_size=3
)
WISH = st.fixed_dictionaries(
    {
        "model": st.just("echo"),
        "max_tokens": st.integers(1, 9),
        "messages": st.just([{"role": "user", "content": "añ"}]) | TURNS,
    },
    optional={"stream": st.booleans(), "tools": st.just([{"name": "f", "input_schema": {}}])},
)
NAMED = st.sampled_from(
    ["system", "temperature", "top_k", "stop_sequences", "tools", "tool_choice", "thinking", "metadata", "max_tokens"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=st.sampled_from(["", "/count_tokens"]), wish=WISH, odd=st.dictionaries(NAMED, VALUES, max_size=2))
def test_odd_messages(http: httpx.Client, path: str, wish: dict, odd: dict) -> None:
    reply = http.post(test_messages.URL + path, content=json.dumps({**wish, **odd}).encode(), headers=JSON)
    assert reply.status_code < 500, reply.text
    assert "event: error" not in reply.text
    if reply.status_code >= 400:
        test_messages.error(reply)
