"""A web page elsewhere must not reach a server on this machine by a name of its own."""

from __future__ import annotations

import socket

import httpx
import pytest

from diastole.serve.app import create_app
from diastole.types import UserError
from serve.fakes import FakeBackend, Running, config
from serve.test_bad_input import error
from serve.test_chat import HELLO, URL, wait_ready

FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.168.0.1",
    "",
    "[::2]",
)
OWN = ("localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000", "localhost.", "127.0.0.5")


def statuses(url: str, hosts: tuple[str, ...]) -> set[int]:
    with httpx.Client(base_url=url) as http:
        return {http.get("/", headers={"host": h}).status_code for h in hosts}


def test_an_open_server_on_loopback_has_the_names_of_loopback_only() -> None:
    with Running() as server:
        wait_ready(server)
        assert statuses(server.url, OWN) == {200}
        assert statuses(server.url, FOREIGN) == {421}
        for path in ("/", "/health", "/metrics", "/nowhere", "/v1/models", "/admin/services/echo/reload"):
            reply = httpx.get(server.url + path, headers={"host": "evil.example"})
            assert reply.status_code == 421
            assert error(reply)["code"] == "host_not_allowed"
            assert "server.allowed_hosts" in error(reply)["message"]
        asked = httpx.post(server.url + URL, json=HELLO, headers={"host": "evil.example"})
        assert asked.status_code == 421
        messages = httpx.post(server.url + "/v1/messages", json={}, headers={"host": "evil.example"})
        assert messages.json()["type"] == "error"  # as Anthropic's clients know it
        assert server.service.asked == []


def test_all_that_are_given_must_be_allowed() -> None:
    with Running() as server:
        for heads, status in ((b"Host: localhost\r\nHost: evil.example\r\n", b"421"), (b"", b"200")):
            with socket.create_connection(("127.0.0.1", server.server.port), timeout=10) as s:
                s.sendall(b"GET /health HTTP/1.0\r\n" + heads + b"\r\n")
                assert s.makefile("rb").readline().split()[1] == status


@pytest.mark.parametrize("settings", [{"api_key": ("k",)}, {"host": "0.0.0.0"}])
def test_others_are_called_as_people_like(settings: dict[str, object]) -> None:
    with Running(**settings) as server:
        assert statuses(server.url, (*OWN, *FOREIGN)) == {200}


def test_names_that_are_set_come_beside_those_of_loopback() -> None:
    with Running(allowed_hosts=("chat.example.org",), api_key=("k",)) as server:
        assert statuses(server.url, ("chat.example.org", "Chat.Example.org:443")) == {200}
        assert statuses(server.url, OWN) == {200}  # health checks on the machine itself go on
        assert statuses(server.url, ("example.org", "x.chat.example.org", "evil.example")) == {421}


@pytest.mark.parametrize("host", ["https://a.example", "a.example:80", "A.example", "*", "", "a b"])
def test_what_is_no_host_is_refused_at_start(host: str) -> None:
    with pytest.raises(UserError, match=r"server\.allowed_hosts") as wrong:
        create_app(FakeBackend(), config(allowed_hosts=(host,)))
    assert wrong.value.param == "server.allowed_hosts"
