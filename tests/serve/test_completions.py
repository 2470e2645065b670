"""POST /v1/completions: every form of prompt, echo, logprobs, several prompts at once."""

import httpx
import pytest

from serve.fakes import Running
from serve.test_chat import events

URL = "/v1/completions"


def ask(http: httpx.Client, **fields: object) -> httpx.Response:
    return http.post(URL, json={"model": "echo", "max_tokens": 100, **fields})


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("añb", ["añb"]),
        (["one", "two"], ["one", "two"]),
        ([104, 105], ["hi"]),
        ([[104], [105, 106]], ["h", "ij"]),
    ],
)
def test_prompt_forms(http: httpx.Client, prompt: object, texts: list[str]) -> None:
    body = ask(http, prompt=prompt).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert [c["text"] for c in body["choices"]] == texts
    assert [c["index"] for c in body["choices"]] == list(range(len(texts)))
    assert {c["finish_reason"] for c in body["choices"]} == {"stop"}
    streamed = events(ask(http, prompt=prompt, stream=True).text)
    joined = [
        "".join(e["choices"][0]["text"] for e in streamed if e["choices"][0]["index"] == i) for i in range(len(texts))
    ]
    assert joined == texts


def test_usage_adds_up_the_guesses_of_all_prompts(server: Running, http: httpx.Client) -> None:
    assert "completion_tokens_details" not in ask(http, prompt=["one", "two"]).json()["usage"]
    server.service.guessed = (9, 5)
    usage = ask(http, prompt=["one", "two"]).json()["usage"]
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 10, "rejected_prediction_tokens": 8}


def test_default_length_is_openais(server: Running, http: httpx.Client) -> None:
    http.post(URL, json={"model": "echo", "prompt": "x"})
    assert server.service.asked[-1].params.max_tokens == 16


def test_choices_of_several_prompts_are_numbered_by_prompt(server: Running, http: httpx.Client) -> None:
    body = ask(http, prompt=["ab", "cd"], n=2, echo=True).json()
    assert [c["text"] for c in body["choices"]] == ["ab<0>ab", "ab<1>ab", "cd<0>cd", "cd<1>cd"]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 20
    assert len({a.id for a in server.service.asked}) == 2
    got = events(ask(http, prompt=["ab", "cd"], n=2, echo=True, stream=True).text)
    joined = dict.fromkeys(range(4), "")
    for e in got:
        joined[e["choices"][0]["index"]] += e["choices"][0]["text"]
    assert joined == dict(enumerate(["ab<0>ab", "ab<1>ab", "cd<0>cd", "cd<1>cd"]))
    finishes = [e["choices"][0]["index"] for e in got if e["choices"][0]["finish_reason"]]
    assert sorted(finishes) == [0, 1, 2, 3]


def test_echo_of_ids(http: httpx.Client) -> None:
    assert ask(http, prompt=[104, 105], echo=True).json()["choices"][0]["text"] == "hihi"


def test_logprobs(http: httpx.Client) -> None:
    logprobs = ask(http, prompt="aé!", logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    assert logprobs["text_offset"] == [0, 1, 2, 2]
    pieces = [e["choices"][0]["logprobs"] for e in events(ask(http, prompt="aé!", logprobs=2, stream=True).text)]
    for key in logprobs:
        assert [x for p in pieces if p for x in p[key]] == logprobs[key]


def test_include_usage(http: httpx.Client) -> None:
    got = events(ask(http, prompt=["a", "bc"], stream=True, stream_options={"include_usage": True}).text)
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["total_tokens"] == 5 + 3
    assert all(e["usage"] is None for e in got[:-1])


def test_one_faulty_prompt_ends_all(server: Running, http: httpx.Client) -> None:
    server.service.fault_after = 3
    reply = ask(http, prompt=["abc", "abcdefghijkl"])
    assert reply.status_code == 500
    assert not server.service.running
