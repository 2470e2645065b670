"""The official client, unchanged, against the server."""

from collections.abc import Iterator

import pytest

from serve.fakes import Running

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture
def client(server: Running) -> Iterator["openai.OpenAI"]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


HELLO = [{"role": "user", "content": "Hello, ünïcödé 🌍"}]


def test_chat(client: "openai.OpenAI") -> None:
    reply = client.chat.completions.create(model="echo", messages=HELLO, logprobs=True, top_logprobs=2)
    assert reply.choices[0].message.content == HELLO[0]["content"]
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion"
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    assert reply.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_stream(client: "openai.OpenAI") -> None:
    stream = client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, n=2, stream_options={"include_usage": True}
    )
    texts = ["", ""]
    finishes, usage = [], None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [f"<{i}>" + HELLO[0]["content"] for i in range(2)]
    assert finishes == ["stop", "stop"]
    assert usage.completion_tokens == sum(len(t.encode()) for t in texts)


def test_stream_helper(client: "openai.OpenAI") -> None:
    with client.chat.completions.stream(model="echo", messages=HELLO) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == HELLO[0]["content"]


def test_completions(client: "openai.OpenAI") -> None:
    reply = client.completions.create(model="echo", prompt=["ab", "cd"], logprobs=1, max_tokens=9)
    assert [c.text for c in reply.choices] == ["ab", "cd"]
    assert reply.choices[1].logprobs.tokens == ["c", "d"]
    stream = client.completions.create(model="echo", prompt="streamed", stream=True, max_tokens=99)
    assert "".join(c.choices[0].text for c in stream) == "streamed"


def test_models(client: "openai.OpenAI") -> None:
    assert [m.id for m in client.models.list()] == ["echo", "parrot"]
    assert client.models.retrieve("parrot").created > 0


def test_errors_have_their_classes(client: "openai.OpenAI") -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="echo", messages=HELLO, temperature=-1)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HELLO)


def test_a_fault_in_the_stream_raises(server: Running, client: "openai.OpenAI") -> None:
    server.service.fault_after = 3
    stream = client.chat.completions.create(model="echo", messages=HELLO, stream=True)
    got = []
    with pytest.raises(openai.APIError, match="internal error"):
        got.extend(chunk.choices[0].finish_reason for chunk in stream)
    assert set(got) <= {None}


def test_leaving_a_stream(server: Running, client: "openai.OpenAI") -> None:
    server.service.endless = True
    server.service.pace = 0.001
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True) as stream:
        next(iter(stream))
