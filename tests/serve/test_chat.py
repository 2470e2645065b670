"""POST /v1/chat/completions: shapes, options, events."""

import json

import httpx
import pytest

from diastole.params import SamplingParams
from serve.fakes import BOS, Running

URL = "/v1/chat/completions"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "Grüße, 世界 🌍!"}]}


def events(text: str) -> list[dict]:
    """Events before [DONE], which must be there."""
    assert text.endswith("data: [DONE]\n\n")
    blocks = [b for b in text.split("\n\n") if b]
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(b.removeprefix("data: ")) for b in blocks if not b.startswith(":")]


def test_whole_answer(http: httpx.Client) -> None:
    reply = http.post(URL, json=HELLO)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    size = len("Grüße, 世界 🌍!".encode())
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "echo"
    assert isinstance(body["created"], int)
    assert body["system_fingerprint"].startswith("diastole-")
    message = {"role": "assistant", "content": "Grüße, 世界 🌍!", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {
        "prompt_tokens": size + 1,
        "completion_tokens": size,
        "total_tokens": 2 * size + 1,
        "prompt_tokens_details": {"cached_tokens": (size + 1) // 2},
    }


def test_alias_is_named_in_the_answer(http: httpx.Client) -> None:
    assert http.post(URL, json={**HELLO, "model": "parrot"}).json()["model"] == "parrot"


def test_stream_is_role_then_text_then_finish_then_done(http: httpx.Client) -> None:
    reply = http.post(URL, json={**HELLO, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    got = events(reply.text)
    assert {e["object"] for e in got} == {"chat.completion.chunk"}
    assert len({(e["id"], e["created"], e["model"]) for e in got}) == 1
    assert all("usage" not in e for e in got)
    first, *middle, last = (e["choices"][0] for e in got)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"]["content"] for c in middle) == "Grüße, 世界 🌍!"
    assert all(c["finish_reason"] is None for c in [first, *middle])
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


def test_include_usage(http: httpx.Client) -> None:
    wish = {**HELLO, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}
    *rest, last = events(http.post(URL, json=wish).text)
    assert all(e["usage"] is None for e in rest)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert rest[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_tells_of_guesses_where_there_were_any(server: Running, http: httpx.Client) -> None:
    server.service.guessed = (9, 5)
    told = {"accepted_prediction_tokens": 5, "rejected_prediction_tokens": 4}
    assert http.post(URL, json=HELLO).json()["usage"]["completion_tokens_details"] == told
    wish = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert events(http.post(URL, json=wish).text)[-1]["usage"]["completion_tokens_details"] == told


def test_choices_come_in_order_when_whole(http: httpx.Client) -> None:
    body = http.post(URL, json={**HELLO, "n": 3}).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert [c["message"]["content"][:3] for c in body["choices"]] == ["<0>", "<1>", "<2>"]


def test_each_streamed_choice_has_one_role_and_one_finish(http: httpx.Client) -> None:
    got = events(http.post(URL, json={**HELLO, "n": 3, "stream": True, "max_tokens": 5}).text)
    for index in range(3):
        mine = [e["choices"][0] for e in got if e["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["length"]
        assert mine[-1]["finish_reason"] == "length"
        assert "".join(c["delta"].get("content", "") for c in mine) == f"<{index}>Gr"


def test_logprobs(http: httpx.Client) -> None:
    wish = {**HELLO, "logprobs": True, "top_logprobs": 6, "max_tokens": 3}
    content = http.post(URL, json=wish).json()["choices"][0]["logprobs"]["content"]
    assert [c["bytes"] for c in content] == [[b] for b in "Grü".encode()[:3]]
    assert content[0]["token"] == "G"
    assert content[0]["logprob"] == -0.5
    assert len(content[0]["top_logprobs"]) == 6
    assert content[0]["top_logprobs"][1]["token"] == "H"
    assert content[0]["top_logprobs"][5]["logprob"] == -9999.0  # minus infinity, as JSON can say it
    streamed = events(http.post(URL, json={**wish, "stream": True}).text)
    pieces = [e["choices"][0]["logprobs"] for e in streamed if e["choices"][0]["logprobs"]]
    assert [c for p in pieces for c in p["content"]] == content


def test_logprobs_without_top(http: httpx.Client) -> None:
    reply = http.post(URL, json={**HELLO, "logprobs": True, "max_tokens": 1}).json()
    assert reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_parameters_reach_the_engine(server: Running, http: httpx.Client) -> None:
    wish = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.3, "logit_bias": {"65": 5, "66": -100.0}, "seed": 11, "stop": ["ß", "zzz"],
        "stop_token_ids": [3], "ignore_eos": True, "max_completion_tokens": 9, "user": "me", "cache_salt": "pepper",
        "slo": {"ttft_ms": 250, "tpot_ms": 40}, "include_stop_str_in_output": True,
        "repetition_detection": False, "allow_approximate_prefill": True,
    }  # fmt: skip
    assert http.post(URL, json={**HELLO, **wish}).status_code == 200
    asked = server.service.asked[-1]
    p = asked.params
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty) == (0.5, 0.9, 7, 0.05, 1.1)
    assert (p.presence_penalty, p.frequency_penalty, p.seed, p.max_tokens) == (0.2, -0.3, 11, 9)
    assert p.logit_bias == {65: 5.0, 66: -100.0}
    assert (p.stop, p.stop_token_ids, p.ignore_eos, p.include_stop) == (("ß", "zzz"), (3,), True, True)
    assert (p.repetition_stop, p.allow_approximate_prefill) == (False, True)
    assert asked.salt == "pepper"
    assert asked.slo is not None
    assert (asked.slo.first, asked.slo.gap) == (0.25, 0.04)


@pytest.mark.parametrize(
    "content",
    ["as it was", [{"type": "text", "text": "as it"}, {"type": "text", "text": "was"}]],
    ids=["text", "parts"],
)
def test_a_prediction_reaches_the_engine(server: Running, http: httpx.Client, content: object) -> None:
    reply = http.post(URL, json={**HELLO, "prediction": {"type": "content", "content": content}})
    assert reply.status_code == 200
    params = server.service.asked[-1].params
    assert isinstance(params, SamplingParams)
    assert params.prediction == ("as it was" if isinstance(content, str) else "as it\nwas")


def test_defaults(server: Running, http: httpx.Client) -> None:
    nulls = dict.fromkeys(("temperature", "max_tokens", "stop", "n", "stream", "logit_bias", "seed", "tools", "slo"))
    assert http.post(URL, json={**HELLO, **nulls, "top_k": -1, "stop": "x"}).status_code == 200
    asked = server.service.asked[-1]
    assert (asked.params.temperature, asked.params.top_p, asked.params.n, asked.params.max_tokens) == (1, 1, 1, None)
    assert (asked.params.stop, asked.params.top_k) == (("x",), 0)
    assert asked.slo is None
    assert asked.salt == ""


@pytest.mark.parametrize("name", ["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"])
def test_slo_headers(server: Running, http: httpx.Client, name: str) -> None:
    http.post(URL, json=HELLO, headers={name: "1500"})
    slo = server.service.asked[-1].slo
    assert slo is not None
    assert slo.first == 1.5
    http.post(URL, json={**HELLO, "slo": {"ttft_ms": 100}}, headers={name: "1500", "x-llm-d-slo-tpot-ms": "20"})
    slo = server.service.asked[-1].slo
    assert slo is not None
    assert (slo.first, slo.gap) == (0.1, 0.02)


def test_content_parts_roles_and_neutral_fields(server: Running, http: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "content": "t", "tool_call_id": "1"},
    ]
    neutral = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "functions": None, "priority": 0,
        "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "chat_template_kwargs": {}, "echo": False,
        "parallel_tool_calls": True,
    }  # fmt: skip
    reply = http.post(URL, json={"model": "echo", "messages": messages, **neutral})
    assert reply.status_code == 200, reply.text
    assert bytes(server.service.asked[-1].prompt[1:]).decode() == "d\na\nb\n\nt"
    assert server.service.asked[-1].prompt[0] == BOS


def test_request_id_is_echoed_but_not_used(server: Running, http: httpx.Client) -> None:
    for _ in range(2):
        reply = http.post(URL, json=HELLO, headers={"x-request-id": "mine-1.2_3"})
        assert reply.headers["x-request-id"] == "mine-1.2_3"
    first, second = (a.id for a in server.service.asked)
    assert first != second
    assert "mine" not in first
    for bad in ("a b", "x" * 129, "<script>", ""):
        reply = http.post(URL, json=HELLO, headers={"x-request-id": bad})
        assert reply.headers["x-request-id"] != bad
        assert len(reply.headers["x-request-id"]) == 24


def test_a_late_refusal_is_still_a_status(server: Running, http: httpx.Client) -> None:
    from diastole.types import UserError

    server.service.refusal = UserError("too long after all", param="prompt", code="context_length_exceeded")
    for stream in (False, True):
        reply = http.post(URL, json={**HELLO, "stream": stream})
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_faults_before_and_in_the_stream(server: Running, http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    server.service.fault_after = 0
    for stream in (False, True):
        reply = http.post(URL, json={**HELLO, "stream": stream})
        assert reply.status_code == 500
        assert reply.json()["error"]["type"] == "api_error"
    server.service.fault_after = 3
    reply = http.post(URL, json={**HELLO, "stream": True})
    assert reply.status_code == 200
    *sent, error = events(reply.text)
    assert set(error) == {"error"}
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in reply.text
    assert all(e["choices"][0]["finish_reason"] is None for e in sent)
    fault = error["error"]["message"].split()[-1].rstrip(".")
    assert any(fault in r.getMessage() and r.exc_info for r in caplog.records)


@pytest.mark.parametrize(("finish", "status"), [("abort", 503), ("error", 500)])
def test_no_finish_is_invented(server: Running, http: httpx.Client, finish: str, status: int) -> None:
    server.service.finish = finish
    reply = http.post(URL, json=HELLO)
    assert reply.status_code == status
    *sent, error = events(http.post(URL, json={**HELLO, "stream": True}).text)
    assert "error" in error
    assert all(e["choices"][0]["finish_reason"] is None for e in sent)


def test_an_iterator_that_just_ends_is_a_fault(server: Running, http: httpx.Client) -> None:
    server.service.vanish = True
    assert http.post(URL, json=HELLO).status_code == 500
    assert "error" in events(http.post(URL, json={**HELLO, "stream": True}).text)[-1]


def test_pings_in_silence_and_early_headers() -> None:
    with Running(ping_seconds=0.05) as server:
        wait_ready(server)
        server.service.pace = 0.3
        reply = httpx.post(server.url + URL, json={**HELLO, "stream": True, "max_tokens": 2}, timeout=10)
        assert reply.text.count(": ping\n\n") >= 2
        assert reply.text.index('"role"') < reply.text.index(": ping")
        assert [e["choices"][0]["finish_reason"] for e in events(reply.text)][-1] == "length"


def wait_ready(server: Running) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=3)) as http:
        for _ in range(2000):
            if http.get(server.url + "/ready").status_code == 200:
                return
    raise AssertionError("the server is not ready")
