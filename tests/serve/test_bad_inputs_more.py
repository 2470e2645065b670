"""Rows of the table of bad inputs that no other test has."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve import fakes
from serve.fakes import Running
from serve.test_bad_input import COMPLETIONS, INVALID, PLAIN, error
from serve.test_chat import HELLO, URL

TESTS = Path(__file__).resolve().parents[1]


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


MEDIA = "messages[0].content[0].type"
CASES: list[tuple[int, str, dict[str, Any], str, str]] = [
    (14, COMPLETIONS, {"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
    (14, URL, {"prompt_logprobs": 10**6}, "prompt_logprobs", "unsupported_parameter"),
    (16, URL, {"stop": ["a", ""]}, "stop", "invalid_value"),
    (16, URL, {"logit_bias": {"1": -1e38}}, "logit_bias", "invalid_value"),
    (
        24,
        URL,
        content({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}}),
        MEDIA,
        "unsupported_content",
    ),
    (
        24,
        URL,
        content({"type": "image_url", "image_url": {"url": "data:image/x;base64,AAAA"}}),
        MEDIA,
        "unsupported_content",
    ),
    (
        26,
        URL,
        content({"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}),
        MEDIA,
        "unsupported_content",
    ),
    (27, COMPLETIONS, {"prompt_embeds": "gASVAAAA"}, "prompt_embeds", "unsupported_parameter"),
    (27, COMPLETIONS, {"prompt_embeds": [[0.5]]}, "prompt_embeds", "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("row", "path", "change", "param", "code"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_cases(
    server: Running, http: httpx.Client, row: int, path: str, change: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post(path, json={**(HELLO if path == URL else PLAIN), **change})
    assert reply.status_code == 400, reply.text
    got = error(reply)
    assert (got["type"], got["param"], got["code"]) == (INVALID, param, code)
    assert server.service.asked == []


def test_no_address_is_asked_for_media(server: Running, http: httpx.Client) -> None:
    """Row 25."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        for place in (url, "file:///etc/passwd", "http://169.254.169.254/latest/meta-data"):
            reply = http.post(URL, json={**HELLO, **content({"type": "image_url", "image_url": {"url": place}})})
            assert (reply.status_code, error(reply)["code"]) == (400, "unsupported_content")
        with pytest.raises(BlockingIOError):
            bait.accept()


DESCRIPTORS = 64


@pytest.fixture
def poor() -> Iterator[str]:
    """The address of a server that may open few files."""
    command = [sys.executable, fakes.__file__, "5", "0", "{}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TESTS)}) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " is ready at " in line)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        yield line.split(" is ready at ")[1].split("/v1")[0]
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(20) == 0


def test_it_outlives_a_lack_of_file_descriptors(poor: str, eventually: Callable[[Callable[[], object]], None]) -> None:
    """Row 43: connections beyond those it can open wait, and it serves again when others have gone."""
    host, port = poor.removeprefix("http://").split(":")
    with ExitStack() as stack, httpx.Client(base_url=poor) as first:
        assert first.get("/health").status_code == 200
        for _ in range(2 * DESCRIPTORS):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        time.sleep(0.2)  # so that it meets the limit; what follows holds however long that takes
        assert first.post(URL, json=HELLO).status_code == 200

    def serves() -> bool:
        try:
            return httpx.post(poor + URL, json=HELLO, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    eventually(serves)
