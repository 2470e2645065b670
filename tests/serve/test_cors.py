"""Cross-origin calls: only where they are wanted."""

from __future__ import annotations

import httpx
import pytest

from diastole.serve.app import create_app
from diastole.types import UserError
from serve.fakes import FakeBackend, Running, config
from serve.test_chat import HELLO, URL, wait_ready

PAGE, OTHER = "https://chat.example.org", "https://chat.example.org.evil.example"
ASK = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


def cors(reply: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k.startswith("access-control-")}


def test_off_unless_listed() -> None:
    with Running() as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        for reply in (
            http.post(URL, json=HELLO, headers={"origin": PAGE}),
            http.options(URL, headers={"origin": PAGE, **ASK}),
        ):
            assert cors(reply) == {}
            assert "vary" not in reply.headers


def test_only_listed_origins() -> None:
    with Running(cors_origins=(PAGE, "http://localhost:3000"), api_key=("k",)) as server:
        wait_ready(server)
        with httpx.Client(base_url=server.url) as http:
            asked = http.options(URL, headers={"origin": PAGE, **ASK})
            assert asked.status_code == 204
            assert cors(asked)["access-control-allow-origin"] == PAGE
            assert cors(asked)["access-control-allow-headers"] == "authorization, content-type"
            assert "POST" in cors(asked)["access-control-allow-methods"]
            assert "access-control-allow-credentials" not in asked.headers
            odd = {"origin": PAGE, **ASK, "access-control-request-headers": "a\tb; c"}
            assert "access-control-allow-headers" not in http.options(URL, headers=odd).headers

            for body in (HELLO, {**HELLO, "stream": True}, {}):  # errors can be read too
                reply = http.post(URL, json=body, headers={"origin": PAGE, "authorization": "Bearer k"})
                assert cors(reply)["access-control-allow-origin"] == PAGE
                assert "retry-after" in cors(reply)["access-control-expose-headers"]
            assert cors(http.post(URL, json=HELLO, headers={"origin": PAGE}))["access-control-allow-origin"] == PAGE

            for origin in (OTHER, "null", PAGE.upper(), PAGE + ":443", "http://chat.example.org"):
                assert cors(http.options(URL, headers={"origin": origin, **ASK})) == {}
                reply = http.post(URL, json=HELLO, headers={"origin": origin, "authorization": "Bearer k"})
                assert cors(reply) == {}
                assert reply.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["*", "null", "chat.example.org", PAGE + "/", PAGE + "/path", "https://*.example.org"]
)
def test_what_is_no_origin_stops_the_start(origin: str) -> None:
    with pytest.raises(UserError, match="is no origin"):
        create_app(FakeBackend(), config(cors_origins=(origin,)))
