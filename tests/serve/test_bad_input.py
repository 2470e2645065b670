"""Wrong requests: status, type, code and param of each, and the server goes on."""

import json
from typing import Any

import httpx
import pytest

from serve.fakes import CONTEXT, Running
from serve.test_chat import HELLO, URL

COMPLETIONS = "/v1/completions"
PLAIN = {"model": "echo", "prompt": "hi"}
JSON = {"content-type": "application/json"}
INVALID = "invalid_request_error"


def error(reply: httpx.Response) -> dict[str, Any]:
    """The error, in OpenAI's form and with words in it."""
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    assert "Traceback" not in reply.text
    return body["error"]


GOOD = json.dumps(HELLO).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        GOOD[:-1],
        GOOD[:20],
        GOOD + b"x",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b'"echo"', b'"\xff\xfe"'),
        GOOD.replace(b'"echo"', b'"echo\\ud800"'),
        GOOD.replace(b'"echo"', b'"ec\x01ho"'),
        GOOD.replace(b'"echo"', b'"echo", "temperature": NaN'),
        GOOD.replace(b'"echo"', b'"echo", "temperature": -Infinity'),
        GOOD.replace(b'"echo"', b'"echo", "ignored": [1, NaN]'),
        GOOD.replace(b'"echo"', b'"echo", "model": "echo"'),
        GOOD.replace(b'"echo"', b'"echo", "mod\\u0065l": "echo"'),
        GOOD.replace(b'"role"', b'"role": "user", "role"'),
        GOOD.replace(b'"echo"', b'"echo", "deep": ' + b"[" * 64 + b"]" * 64),
        GOOD.replace(b'"echo"', b'"echo", "deep": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000),
        GOOD.replace(b'"echo"', b'"echo", "many": {' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}"),
        GOOD.replace(b'"echo"', b'"echo", "many": [' + b"[]," * 200_000 + b"[]]"),
        b"[" * 100_000,
        b'"' + b'\\"' * 500_000,
        b'{"a":"' + b"\\\\" * 500_000,
        b"{'model': 'echo'}",
        GOOD.decode().encode("utf-16"),
    ],
)
def test_not_json(http: httpx.Client, body: bytes) -> None:
    reply = http.post(URL, content=body, headers=JSON)
    assert reply.status_code == 400
    got = error(reply)
    assert (got["type"], got["code"], got["param"]) == (INVALID, "invalid_json", None)


def test_depth_of_64_is_allowed(http: httpx.Client) -> None:
    body = GOOD.replace(b'"echo"', b'"echo", "deep": ' + b"[" * 63 + b"]" * 63)
    assert http.post(URL, content=body, headers=JSON).status_code == 200


def test_keys_may_repeat_in_different_objects_and_as_values(http: httpx.Client) -> None:
    body = {**HELLO, "metadata": {"model": "role", "role": "model", "x": ["a", "a", {"a": 1}, {"a": 1}]}}
    assert http.post(URL, json=body).status_code == 200


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"x"', b"true"])
def test_not_an_object(http: httpx.Client, body: bytes) -> None:
    reply = http.post(URL, content=body, headers=JSON)
    assert (reply.status_code, error(reply)["code"]) == (400, "invalid_type")


HUGE = b"9" * 6_000  # more than Python turns into a number


@pytest.mark.parametrize(
    ("path", "field"),
    [(URL, "best_of"), (COMPLETIONS, "suffix"), ("/v1/messages", "x"), ("/v1/messages", "thinking")],
)
def test_a_number_of_thousands_of_digits_is_the_requests_fault(http: httpx.Client, path: str, field: str) -> None:
    sound = json.dumps(
        {**HELLO, "prompt": "hi", "max_tokens": 3} if path != "/v1/messages" else {**HELLO, "max_tokens": 3}
    )
    body = sound.encode()[:-1] + b', "%s": %s}' % (field.encode(), HUGE)
    reply = http.post(path, content=body, headers=JSON)
    assert reply.status_code == 400
    assert f"{field}: a number is out of range" in reply.json()["error"]["message"]


MANY = {str(i): 0 for i in range(1025)}
SPOKEN = {"type": "content", "content": [{"type": "audio"}]}
CHAT_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role", "invalid_type"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_content",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "messages",
        "template_error",
    ),
    ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages", "context_length_exceeded"),
    ({"max_tokens": CONTEXT}, "max_tokens", "context_length_exceeded"),
    ({"max_completion_tokens": CONTEXT}, "max_completion_tokens", "context_length_exceeded"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**400}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_completion_tokens": 10**30}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "8"}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 1000}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 10**6}, "n", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": -(2**63) - 1}, "seed", "invalid_value"),
    ({"seed": -(10**300)}, "seed", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": "x" * 10**6}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop[0]", "invalid_type"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "invalid_token_id"),
    ({"prediction": {"type": "image", "content": "x"}}, "prediction.type", "invalid_value"),
    ({"prediction": {"type": "content", "content": []}}, "prediction.content", "empty_array"),
    ({"prediction": SPOKEN}, "prediction.content[0].type", "unsupported_content"),
    ({"prediction": "x"}, "prediction", "invalid_type"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_token_id"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 1e38}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": "x"}}, "logit_bias", "invalid_type"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"logit_bias": MANY}, "logit_bias", "invalid_value"),
    ({"logprobs": 5}, "logprobs", "invalid_type"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
        "unsupported_parameter",
    ),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms", "invalid_value"),
    ({"slo": {"tpot_ms": -5}}, "slo.tpot_ms", "invalid_value"),
    ({"slo": {"tpot_ms": 1e300}}, "slo.tpot_ms", "invalid_value"),
    ({"slo": {"ttft_ms": "1"}}, "slo.ttft_ms", "invalid_type"),
    ({"slo": 5}, "slo", "invalid_type"),
    ({"priority": 1}, "priority", "unsupported_parameter"),
    ({"priority": -1}, "priority", "unsupported_parameter"),
    ({"priority": "high"}, "priority", "invalid_type"),
    ({"priority": 1.5}, "priority", "invalid_type"),
    ({"priority": 2**63}, "priority", "invalid_value"),
    ({"priority": -1001}, "priority", "invalid_value"),
    ({"cache_salt": ""}, "cache_salt", "invalid_value"),
    ({"cache_salt": "x" * 257}, "cache_salt", "invalid_value"),
    ({"user": 1}, "user", "invalid_type"),
    ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
    ({"repetition_detection": {"max_pattern_size": 4}}, "repetition_detection", "invalid_type"),
    ({"allow_approximate_prefill": 1}, "allow_approximate_prefill", "invalid_type"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "json"}}, "response_format.type", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    ({"use": ["zipcache"]}, "use", "unsupported_parameter"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"guided_json": 3}, "guided_json", "invalid_schema"),
]


@pytest.mark.parametrize(("change", "param", "code"), CHAT_CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CHAT_CASES)])
def test_chat(server: Running, http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    reply = http.post(URL, json={**HELLO, **change})
    assert reply.status_code == 400, reply.text
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == (INVALID, param, code), got
    assert param.rsplit(".", 1)[-1].split("[")[0] in got["message"] or code.startswith(("template", "context"))
    assert server.service.asked == []


COMPLETION_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": ""}, "prompt", "empty_prompt"),
    ({"prompt": []}, "prompt", "empty_array"),
    ({"prompt": ["a", ""]}, "prompt[1]", "empty_prompt"),
    ({"prompt": [[1], []]}, "prompt[1]", "empty_prompt"),
    ({"prompt": [[]]}, "prompt", "empty_prompt"),
    ({"prompt": {}}, "prompt", "invalid_type"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_type"),
    ({"prompt": [1, [2]]}, "prompt", "invalid_type"),
    ({"prompt": [1, True]}, "prompt[1]", "invalid_type"),
    ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ({"prompt": [1, -1]}, "prompt", "invalid_token_id"),
    ({"prompt": [258]}, "prompt", "invalid_token_id"),
    ({"prompt": [2**40]}, "prompt", "invalid_token_id"),
    ({"prompt": [2**70]}, "prompt", "invalid_type"),
    ({"prompt": [[1], [999]]}, "prompt", "invalid_token_id"),
    ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
    ({"prompt": [[1]] * 20_000}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 65, "n": 2}, "n", "invalid_value"),
    ({"prompt": "x" * CONTEXT}, "prompt", "context_length_exceeded"),
    ({"prompt": [1] * CONTEXT}, "prompt", "context_length_exceeded"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"echo": True, "logprobs": 1}, "echo", "invalid_value"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter"),
    ({"best_of": 10**6}, "best_of", "unsupported_parameter"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("change", "param", "code"), COMPLETION_CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(COMPLETION_CASES)]
)
def test_completions(server: Running, http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    reply = http.post(COMPLETIONS, json={**PLAIN, **change})
    assert reply.status_code == 400, reply.text
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == (INVALID, param, code), got
    assert server.service.asked == []


@pytest.mark.parametrize(("path", "body"), [(URL, HELLO), (COMPLETIONS, PLAIN)])
def test_model(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    reply = http.post(path, json={**body, "model": "gpt-99"})
    assert reply.status_code == 404
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == ("not_found_error", "model", "model_not_found")
    assert "echo" in got["message"]
    reply = http.post(path, json={k: v for k, v in body.items() if k != "model"})
    assert (reply.status_code, error(reply)["param"]) == (400, "model")
    assert error(reply)["code"] == "missing_required_parameter"
    assert error(http.post(path, json={**body, "model": None}))["param"] == "model"


@pytest.mark.parametrize("change", [{"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"a": 1}}])
def test_templates_from_strangers(http: httpx.Client, change: dict[str, Any]) -> None:
    reply = http.post(URL, json={**HELLO, **change})
    assert reply.status_code == 403
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == ("permission_error", next(iter(change)), "template_not_allowed")


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "1e300", ""])
def test_slo_headers(http: httpx.Client, value: str) -> None:
    reply = http.post(URL, json=HELLO, headers={"x-llm-d-slo-ttft-ms": value})
    assert reply.status_code == 400
    assert error(reply)["param"] == "x-llm-d-slo-ttft-ms"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/console/", 404, "not_found"),
        ("GET", "/console/../app.py", 404, "not_found"),
        ("GET", "/console/%2e%2e%2fapp.py", 404, "not_found"),
        ("GET", "/console/nothing.js", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("POST", "/v1/chat", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/%ff%00", 404, "not_found"),
        ("GET", URL, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("OPTIONS", "/nowhere", 404, "not_found"),
    ],
)
def test_routing(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert error(reply)["code"] == code
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_media_types(http: httpx.Client, headers: dict[str, str]) -> None:
    reply = http.post(URL, content=GOOD, headers=headers)
    assert reply.status_code == 415
    assert error(reply)["code"] == "unsupported_media_type"


def test_missing_content_type(http: httpx.Client) -> None:
    assert http.post(URL, content=GOOD).status_code == 415


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", 'Application/JSON;charset="utf-8"'])
def test_media_types_that_are_fine(http: httpx.Client, kind: str) -> None:
    assert http.post(URL, content=GOOD, headers={"content-type": kind}).status_code == 200
