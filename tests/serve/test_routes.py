"""The other routes, keys, and what surrounds all routes."""

import re
from collections.abc import Callable

import httpx
import pytest

from diastole import __version__
from diastole.frontend.types import EngineLost
from diastole.types import SLO
from serve.fakes import FakeBackend, FakeService, Running
from serve.test_chat import HELLO, URL, wait_ready


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["echo", "parrot"]
    one = http.get("/v1/models/parrot").json()
    assert one["object"] == "model"
    assert one["root"] == "echo"
    assert one["max_model_len"] == 4096
    missing = http.get("/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_small_routes(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json() == {"version": __version__}
    head = http.head("/health")
    assert head.status_code == 200
    assert head.content == b""
    options = http.options(URL)
    assert options.status_code == 204
    assert options.headers["allow"] == "OPTIONS, POST"
    assert not [h for h in options.headers if h.startswith("access-control")]
    assert "server" not in options.headers


def test_tokenize_round_trip(http: httpx.Client) -> None:
    reply = http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert reply == {
        "tokens": [256, 104, 195, 169],
        "count": 4,
        "max_model_len": 4096,
        "token_strs": ["", "h", "bytes:\\xc3", "bytes:\\xa9"],
    }
    assert http.post("/detokenize", json={"tokens": reply["tokens"], "model": "echo"}).json() == {"prompt": "hé"}
    chat = http.post("/tokenize", json={"messages": HELLO["messages"]}).json()
    assert chat["count"] == len("Grüße, 世界 🌍!".encode()) + 1


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"messages": []}, "messages", "empty_array"),
        ("/tokenize", {"prompt": 1}, "prompt", "invalid_type"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_token_id"),
        ("/detokenize", {"tokens": [1, 258]}, "tokens[1]", "invalid_token_id"),
        ("/detokenize", {"tokens": [10**18]}, "tokens[0]", "invalid_token_id"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "invalid_type"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
    ],
)
def test_tokenize_refusals(http: httpx.Client, path: str, body: dict, param: str, code: str) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)


def test_model_is_needed_where_there_are_two() -> None:
    with Running(FakeBackend(FakeService("one", ()), FakeService("two", ()))) as server:
        wait_ready(server)
        reply = httpx.post(server.url + "/tokenize", json={"prompt": "a"})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "model"
        assert httpx.post(server.url + "/tokenize", json={"prompt": "a", "model": "two"}).status_code == 200


def test_metrics(http: httpx.Client, server: Running) -> None:
    http.post(URL, json=HELLO)
    http.get("/nowhere/" + "x" * 50)
    http.request("PROPFIND", "/nowhere")
    meter = server.backend.meter
    meter.count("prompt_tokens", 7)
    meter.arrived("m", 0.0, 7, SLO())
    meter.admitted("m", 0.1)
    meter.emitted([("m", 1), ("m", 1)], 0.5)
    meter.ended("m", 0.6, "length")
    meter.gauges["num_requests_running"] = 3
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.text.splitlines()
    for line in (
        'diastole_prompt_tokens_total{model_name="echo"} 7.0',
        'diastole_generation_tokens_total{model_name="echo"} 2.0',
        'diastole_num_requests_running{model_name="echo"} 3.0',
        'diastole_request_success_total{finished_reason="length",model_name="echo"} 1.0',
        'diastole_time_to_first_token_seconds_bucket{le="0.25",model_name="echo"} 0.0',
        'diastole_time_to_first_token_seconds_bucket{le="0.5",model_name="echo"} 1.0',
        'diastole_time_to_first_token_seconds_bucket{le="+Inf",model_name="echo"} 1.0',
        'diastole_time_to_first_token_seconds_sum{model_name="echo"} 0.5',
        'diastole_request_prompt_tokens_count{model_name="echo"} 1.0',
        "diastole_engine_up 1.0",
        "diastole_engine_restarts_total 0.0",
    ):
        assert line in lines
    names = set(re.findall(r"^# TYPE (\S+)", reply.text, re.MULTILINE))
    for name in (
        "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total",
        "num_preemptions_total", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_generation_tokens", "step_seconds",
    ):  # fmt: skip
        assert "diastole_" + name in names
    assert "nowhere" not in reply.text
    assert "PROPFIND" not in reply.text
    assert re.search(r'diastole_http_requests_total\{method="other",route="other",status="4\d\d"\} 1', reply.text)


def test_metrics_survive_a_deaf_engine(server: Running, http: httpx.Client) -> None:
    server.backend.deaf = True
    try:
        reply = http.get("/metrics")
    finally:
        server.backend.deaf = False
    assert reply.status_code == 200
    assert "diastole_engine_up 0.0" in reply.text
    assert "diastole_http_requests_total" in reply.text


def counts(server: Running, family: str) -> dict[str, float]:
    """Counters whose lines begin so, by what follows."""
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    rests = (line.removeprefix(family).split() for line in lines if line.startswith(family))
    return {label: float(value) for label, value in rests}


def test_finished_streams_are_not_counted_as_abandoned(eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running() as server:
        wait_ready(server)
        for stream in (True, False) * 5:
            httpx.post(server.url + URL, json={**HELLO, "stream": stream})
        counted = 'diastole_http_requests_total{method="POST",route="/v1/chat/completions",status='
        # A request is counted once all of its answer is sent, which its client may see first.
        eventually(lambda: sum(counts(server, counted).values()) == 10)
        assert counts(server, counted) == {'"200"}': 10}
        assert server.service.aborted == []


def test_keys() -> None:
    with Running(api_key=("first-key", "second-key")) as server:
        wait_ready(server)
        with httpx.Client(base_url=server.url) as http:
            assert http.get("/health").status_code == 200
            for key in ("first-key", "second-key"):
                assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
            for header in ("Bearer wrong", "Bearer first-ke", "Basic first-key", "first-key", "Bearer", ""):
                for path in ("/v1/models", "/metrics", "/version", "/nowhere"):
                    reply = http.get(path, headers={"authorization": header})
                    assert reply.status_code == 401
                    assert reply.json()["error"]["type"] == "authentication_error"
                    assert reply.json()["error"]["code"] == "invalid_api_key"
            assert http.post(URL, json=HELLO).status_code == 401
            raw = http.post(URL, json=HELLO, headers={"authorization": b"Bearer \xff\xfe"})
            assert raw.status_code == 401


def test_loading_then_ready_then_dead(eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running(FakeBackend(loading=True)) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/health").status_code == 200
        for reply in (http.get("/ready"), http.post(URL, json=HELLO), http.get("/v1/models")):
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "model_loading"
            assert int(reply.headers["retry-after"]) > 0
        assert server.said == []
        server.backend.finish_loading()
        eventually(lambda: http.get("/ready").status_code == 200)
        eventually(lambda: server.said)
        assert server.url in server.said[0]
        assert len(server.said) == 1
        server.backend.restarting = True
        for reply in (http.get("/ready"), http.post(URL, json=HELLO), http.get("/v1/models")):
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "engine_restarting"
            assert int(reply.headers["retry-after"]) > 0
        assert http.get("/health").status_code == 200
        server.backend.dead = True
        for reply in (http.get("/ready"), http.post(URL, json=HELLO), http.get("/health")):
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "model_unavailable"


@pytest.mark.parametrize("stream", [True, False])
def test_engine_death_in_a_request_is_said(server: Running, http: httpx.Client, stream: bool) -> None:
    server.service.fault_after = 2
    server.service.fault = EngineLost("the engine process has ended")
    reply = http.post(URL, json={**HELLO, "stream": stream})
    assert '"code":"engine_restarting"' in reply.text
    assert '"type":"overloaded_error"' in reply.text
    if stream:
        assert reply.text.endswith("data: [DONE]\n\n")
    else:
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) > 0


def test_too_many_at_once(eventually: Callable[[Callable[[], object]], None]) -> None:
    with Running(max_queued=1) as server:
        wait_ready(server)
        server.service.pace = 0.05
        server.service.endless = True
        with httpx.stream("POST", server.url + URL, json={**HELLO, "stream": True}):
            eventually(lambda: server.service.running)
            reply = httpx.post(server.url + URL, json=HELLO)
            assert reply.status_code == 503
            assert reply.json()["error"] == {
                "message": reply.json()["error"]["message"],
                "type": "overloaded_error",
                "param": None,
                "code": "overloaded",
            }
            assert reply.headers["retry-after"] == "1"
        eventually(lambda: not server.service.running)
        server.service.reset()
        eventually(lambda: httpx.post(server.url + URL, json=HELLO).status_code == 200)
