"""Malformed requests: sound ones for every route, of which something is broken, from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuzz_lists import GRAMMARS, HEADERS, IDS, IMAGES, METHODS, ODD, REGEXES, SCHEMAS, TOOLS

from diastole.serve.routes import ROUTES


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes to send. ``whole``: an answer is due; otherwise the server may wait for more or close in silence."""

    route: str
    data: bytes
    whole: bool = True


class Malformed:
    """An endless choice of requests.

    Args:
        model: a name that is served.
    """

    def __init__(self, model: str, rng: random.Random) -> None:
        self.rng = rng
        chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        self._sound: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": chat,
            "/v1/completions": {"model": model, "prompt": "hi", "max_tokens": 4},
            "/v1/messages": chat,
            "/v1/messages/count_tokens": {"model": model, "messages": chat["messages"]},
            "/v1/responses": {"model": model, "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 4},
            "/v1/embeddings": {"model": model, "input": ["hi", "there"]},
            "/tokenize": {"model": model, "prompt": "hi"},
            "/detokenize": {"model": model, "tokens": [1, 2]},
            "/admin/services/{name}/reload": {},
            "/v1/requests/{id}/cancel": {},
        }
        self._fields = _fields()
        self._sorts: list[Callable[[], Request]] = [
            self._odd_field, self._odd_field, self._odd_field, self._odd_place, self._damaged, self._extreme,
            self._hostile, self._hostile, self._truncated, self._lying, self._odd_headers, self._odd_line, self._noise,
        ]  # fmt: skip

    def one(self) -> Request:
        """A request of a random sort."""
        return self.rng.choice(self._sorts)()

    # ---- sorts

    def _odd_field(self) -> Request:
        """One to three fields hold what they should not."""
        route, body = self._body()
        for _ in range(self.rng.randint(1, 3)):
            body[self.rng.choice(self._fields[route] or ["x"])] = self.rng.choice(ODD)
        if self.rng.random() < 0.2:
            body["stream"] = True
        return self._post(route, _json(body))

    def _odd_place(self) -> Request:
        """Something somewhere inside a sound body is replaced."""
        route, body = self._body()
        return self._post(route, _json(self._replaced(body)))

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, dict) and value and self.rng.random() < 0.9:
            key = self.rng.choice(list(value))
            return {**value, key: self._replaced(value[key])}
        if isinstance(value, list) and value and self.rng.random() < 0.9:
            at = self.rng.randrange(len(value))
            return [*value[:at], self._replaced(value[at]), *value[at + 1 :]]
        return self.rng.choice([*ODD, *IMAGES, [self.rng.choice(IMAGES)]])

    def _damaged(self) -> Request:
        """Bytes of a sound body are changed, added or missing."""
        route, body = self._body()
        data = bytearray(_json(body))
        for _ in range(self.rng.randint(1, 6)):
            at = self.rng.randint(0, len(data))
            if self.rng.random() < 0.6:
                data[at:at] = self.rng.randbytes(self.rng.randint(1, 5))
            else:
                del data[at : at + self.rng.randint(1, 20)]
        return self._post(route, bytes(data))

    def _extreme(self) -> Request:
        """Depth, length, encodings and numbers that parsers choke on."""
        route, body = self._body()
        sound = _json(body) if body else b'{"a":1}'
        bad = self.rng.choice([
            b"[" * self.rng.choice([65, 5_000, 100_000]), b'{"a":' * 3_000 + b"1" + b"}" * 3_000, b"", b"null", b'"x"',
            sound[:-1] + b',"x":' + b"9" * 6_000 + b"}", sound[:-1] + b',"x":1e999999}', sound[:-1] + b',"x":NaN}',
            sound[:-1] + b"," + sound[1:], sound.decode().encode("utf-16"), b"\xef\xbb\xbf" + sound, b"\xff" * 100,
            sound[:-1] + b',"x":"\\ud800"}', sound[:-1] + b',"x":"' + b"\\u0000" * 50 + b'"}',
            b"{" + b",".join(b'"%d":0' % i for i in range(30_000)) + b"}", b" " * 200_000 + sound, sound * 2,
        ])  # fmt: skip
        return self._post(route, bad)

    def _hostile(self) -> Request:
        """Schemas, grammars, tools, templates and media."""
        route = self.rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
        body = copy.deepcopy(self._sound[route])
        schema, regex, grammar = (self.rng.choice(of) for of in (SCHEMAS, REGEXES, GRAMMARS))
        body.update(
            self.rng.choice(
                [
                    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                    {"guided_json": schema},
                    {"json_schema": schema},
                    {"guided_regex": regex},
                    {"guided_grammar": grammar},
                    {"grammar": grammar},
                    {"structured_outputs": {"regex": regex}},
                    {"structured_outputs": {"grammar": grammar}},
                    {"guided_choice": ["", "a"]},
                    {"guided_choice": ["a"] * 2_000},
                    {"response_format": {"type": "x"}},
                    {"text": {"format": {"type": "json_schema", "schema": schema}}},
                    {"chat_template": "{{ x }}"},
                    {
                        "tools": self.rng.choice(TOOLS),
                        "tool_choice": self.rng.choice(["auto", "required", "x", {"type": "any"}]),
                    },
                    {"tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}},
                    {"messages": [{"role": "user", "content": [self.rng.choice(IMAGES)]}]},
                    {"messages": [{"role": self.rng.choice(["tool", "assistant", "system", "x"]), "content": "x"}] * 3},
                    {"stop": self.rng.choice([[""], ["a"] * 17, "x" * 1_001])},
                    {"logit_bias": {"999999": 1}},
                    {"logit_bias": {"0": 1e38}},
                    {"n": 10**6},
                    {"best_of": 10**6},
                    {"prompt": [[0]] * 1_000},
                    {"prompt": [-1]},
                ]
            )
        )
        if self.rng.random() < 0.3:
            body["stream"] = True
        return self._post(route, _json(body))

    def _truncated(self) -> Request:
        """The client stops sending within its request."""
        route, body = self._body()
        data = self._post(route, _json(body)).data
        return Request(route, data[: self.rng.randrange(1, len(data))], whole=False)

    def _lying(self) -> Request:
        """The length, or a chunk's, is not the body's."""
        route, body = self._body()
        data = _json(body) or b"{}"
        if self.rng.random() < 0.3:
            chunk = self.rng.choice([b"zz\r\n", b"-1\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"5\r\nab\r\n", b"0\r\n"])
            return Request(
                route, self._head("POST", self._url(route), ["Transfer-Encoding: chunked"]) + chunk + data, False
            )
        length = self.rng.choice([0, 1, len(data) - 1, len(data) + 50, 10**6, 10**9, 10**30])
        return Request(route, self._head("POST", self._url(route), [f"Content-Length: {length}"]) + data, False)

    def _odd_headers(self) -> Request:
        route, body = self._body()
        data = _json(body)
        odd = self.rng.sample(HEADERS, self.rng.randint(1, 3))
        if self.rng.random() < 0.1:
            odd += [f"X-{i}: {i}" for i in range(self.rng.choice([255, 300, 3_000]))]
        return Request(
            route, self._head("POST", self._url(route), [f"Content-Length: {len(data)}", *odd]) + data, False
        )

    def _odd_line(self) -> Request:
        """Any method on any route, with odd ids and queries; also paths that are none."""
        route = self.rng.choice(ROUTES)
        url = self._url(route.label) + self.rng.choice(
            ["", "?", "?since=-1", "?since=" + "9" * 40, "?a=b&" * 50, "#x", "/", "//"]
        )
        if self.rng.random() < 0.2:
            url = self.rng.choice(
                ["/nowhere", "//", "*", "http://x/health", "/v1/../admin", "/" + "a" * 70_000, "", "x"]
            )
        method = route.method if self.rng.random() < 0.6 else self.rng.choice(METHODS)
        head = self._head(method, url, ["Content-Length: 0"])
        if self.rng.random() < 0.1:
            head = head.replace(b"HTTP/1.1", self.rng.choice([b"HTTP/9.9", b"HTTP/1.0", b"HTTP/2", b"", b"ICY"]))
        return Request(route.label, head, False)

    def _noise(self) -> Request:
        """No HTTP at all."""
        noise = self.rng.choice(
            [
                self.rng.randbytes(self.rng.randint(1, 300)),
                b"\x16\x03\x01\x02\x00",
                b"\r\n" * 50,
                b"PRI * HTTP/2.0\r\n\r\n",
            ]
        )
        return Request("(no HTTP)", noise, False)

    # ---- their parts

    def _body(self) -> tuple[str, dict[str, Any]]:
        route = self.rng.choice(list(self._sound))
        return route, copy.deepcopy(self._sound[route])

    def _url(self, route: str) -> str:
        return route.replace("{id}", self.rng.choice(IDS)).replace("{name}", self.rng.choice(IDS))

    def _post(self, route: str, data: bytes) -> Request:
        url = self._url(route)
        # A server need not read what follows a line that is no HTTP, and its answer may be lost to who still sends it.
        return Request(route, self._head("POST", url, [f"Content-Length: {len(data)}"]) + data, url.isascii())

    def _head(self, method: str, url: str, headers: list[str]) -> bytes:
        kind = [] if any(h.startswith("Content-Type") for h in headers) else ["Content-Type: application/json"]
        lines = [f"{method} {url} HTTP/1.1", "Host: localhost", "Connection: close", *kind, *headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _fields() -> dict[str, list[str]]:
    """Names of the fields of each route's body, and some that no route has."""
    names: dict[str, list[str]] = {}
    for route in ROUTES:
        names[route.label] = [*getattr(route.reads, "__struct_fields__", ()), "chat_template", "best_of", "__proto__"]
    return names
