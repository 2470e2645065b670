"""Recordings sent for transcription, to a recogniser with random weights: what matters is that it says the same."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch

from diastole.bench.streaming import opened
from diastole.kernels.table import load
from diastole.serve.transcriptions import Transcript, Word, subtitles
from frontend.test_serving import Running as RealServer
from live import small

RATE = 16_000
RNNT = {"decoder": "rnnt"}


@pytest.fixture(scope="module")
def ear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealServer, str]]:
    """A server, and the text that it has to give."""
    out = tmp_path_factory.mktemp("ear") / "ear"
    net = small.conformer()
    with torch.no_grad():
        net.join_out.bias[-1] -= 0.5  # to say something
    small.written(net, small.conformer_config(), out)
    said = small.readings(opened(str(out), load(1)), sound(), [4000] * 20, {"decoder": "rnnt"})
    server = RealServer(target=str(out))
    yield server, " ".join(r.data["text"] for r in said if r.kind == "final")
    server.stop()


def sound() -> Any:
    return np.round(0.1 * small.noise(RATE * 5, 1, 9) * 32767) / 32768


def file(kind: str = "WAV", rate: int = RATE, channels: int = 1) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.repeat(sound(), channels, 1), rate, "PCM_16", format=kind)
    return data.getvalue()


def post(server: RealServer, data: bytes, **fields: Any) -> httpx.Response:
    return server.http.post(
        "/v1/audio/transcriptions", files={"file": ("x.wav", data)}, data={"model": "ear", **RNNT, **fields}
    )


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_heard_as_a_stream_is(ear: tuple[RealServer, str], kind: str, channels: int) -> None:
    server, text = ear
    assert len(text.split()) > 3
    assert post(server, file(kind, channels=channels)).json() == {"text": text}


def test_all_forms_of_an_answer(ear: tuple[RealServer, str]) -> None:
    server, text = ear
    verbose = post(server, file(), response_format="verbose_json").json()
    assert verbose["text"] == text == " ".join(w["word"] for w in verbose["words"])
    assert verbose["duration"] == 5.0
    assert all(0 <= w["start"] < w["end"] <= 5.0 for w in verbose["words"])
    assert post(server, file(), response_format="text").text == text + "\n"
    assert post(server, file(), response_format="vtt").text.startswith("WEBVTT\n\n00:00:0")
    assert post(server, file(), response_format="srt").text.startswith("1\n00:00:0")


def test_openai_s_client_streams_it(ear: tuple[RealServer, str]) -> None:
    server, text = ear
    assert server.openai.audio.transcriptions.create(model="ear", file=("x.wav", file()), extra_body=RNNT).text == text
    events = list(
        server.openai.audio.transcriptions.create(model="ear", file=("x.wav", file()), stream=True, extra_body=RNNT)
    )
    deltas = "".join(e.delta for e in events if e.type == "transcript.text.delta")
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == text
    assert deltas.split() == text.split()
    with pytest.raises(openai.BadRequestError, match="latency_ms must be one of"):
        server.openai.audio.transcriptions.create(model="ear", file=("x.wav", file()), extra_body={"latency_ms": 7})


def test_another_rate_and_options(ear: tuple[RealServer, str]) -> None:
    server, _ = ear
    assert post(server, file(rate=8000)).json()["text"]
    assert post(server, file(), decoder="ctc", latency_ms="0", endpoint_ms="0").status_code == 200


@pytest.mark.parametrize(
    ("fields", "data", "status", "said"),
    [
        ({"model": "nobody"}, None, 404, "no model 'nobody'"),
        ({"model": ""}, None, 400, "model is required"),
        ({"response_format": "xml"}, None, 400, "response_format must be one of"),
        ({"stream": "maybe"}, None, 400, "stream must be true or false"),
        ({"decoder": "beam"}, None, 400, "decoder must be rnnt or ctc"),
        ({"endpoint_ms": "soon"}, None, 400, "endpoint_ms must be of type int"),
        ({}, b"", 400, "file is required"),
        ({}, b"RIFF nothing of the kind", 400, "cannot be read as sound"),
        ({}, b"\0" * 5000, 400, "cannot be read as sound"),
    ],
    ids=str,
)
def test_wrong_requests(ear: tuple[RealServer, str], fields: Any, data: Any, status: int, said: str) -> None:
    answer = post(ear[0], file() if data is None else data, **fields)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


def test_what_is_no_form_is_refused(ear: tuple[RealServer, str]) -> None:
    http = ear[0].http
    path = "/v1/audio/transcriptions"
    assert http.post(path, json={"model": "ear"}).status_code == 415
    for kind, body in (("multipart/form-data", b"x"), ("multipart/form-data; boundary=b", b"--b\r\nnothing")):
        answer = http.post(path, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    many = {f"f{i}": "x" for i in range(100)}
    assert http.post(path, files={"file": b"x"}, data=many).status_code == 400
    assert ear[0].metric("num_requests_running") == 0


def test_who_leaves_is_not_worked_for(ear: tuple[RealServer, str]) -> None:
    server, _ = ear
    long = io.BytesIO()
    soundfile.write(long, np.zeros((RATE * 600, 1)), RATE, "PCM_16", format="WAV")

    def leave() -> None:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(
                f"{server.url}/v1/audio/transcriptions", files={"file": long.getvalue()}, data={"model": "ear"},
                timeout=httpx.Timeout(10, read=0.3),
            )  # fmt: skip

    gone = threading.Thread(target=leave)
    gone.start()
    gone.join()
    for _ in range(200):
        if server.metric("num_requests_running") == 0:
            break
    assert server.metric("num_requests_running") == 0
    assert json.loads(server.http.get("/health").text)["status"] == "ok"


def test_subtitles_break_at_pauses() -> None:
    words = [Word("one", 0.0, 0.5), Word("two", 0.6, 1.0), Word("three", 3661.2, 3661.9)]
    assert subtitles(Transcript(words), "srt") == (
        "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n01:01:01,200 --> 01:01:01,900\nthree\n"
    )
