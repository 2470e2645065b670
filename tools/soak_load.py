"""The load of a soak: requests of every sort, over plain sockets so that a client can leave or dawdle at any byte."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

MODEL = "smollm2-135m"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATIENCE = 180.0  # seconds after which a request counts as lost
CONTEXT = 4096  # tokens that the server is told to allow
TURNED_AWAY = "turned away"  # the server is full, or the wait would be too long


class Tally:
    """What became of the requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()  # by sort and outcome
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.first: list[float] = []  # seconds to the first event with text
        self.answers: dict[str, str] = {}  # of greedy requests, by prompt: each must always be the same

    def fault(self, sort: str, what: str) -> str:
        self.faults.append(f"{sort}: {what}")
        return "FAULT"


class Load:
    """Sends requests to one server.

    Args:
        rng: decides everything that is random.
    """

    def __init__(self, host: str, port: int, tally: Tally, rng: random.Random) -> None:
        self.host, self.port, self.tally, self.rng = host, port, tally, rng
        self._sorts: dict[str, tuple[int, Callable[[], Awaitable[str]]]] = {
            "short stream": (30, self._stream),
            "short whole": (20, self._whole),
            "long prompt": (8, self._long),
            "giant prompt": (8, self._giant),
            "slow reader": (8, self._slow),
            "leaves": (14, self._leave),
            "cancelled": (12, self._cancel),
        }

    async def one(self) -> str:
        """One request of a random sort, to its end; what became of it."""
        sorts, weights = zip(*((s, w) for s, (w, _) in self._sorts.items()), strict=True)
        sort = self.rng.choices(sorts, weights)[0]
        try:
            async with asyncio.timeout(PATIENCE):
                outcome = await self._sorts[sort][1]()
        except TimeoutError:
            outcome = self.tally.fault(sort, f"no end within {PATIENCE:g} s")
        except (OSError, EOFError, ValueError, KeyError, IndexError) as e:
            outcome = self.tally.fault(sort, repr(e))
        self.tally.outcomes[sort, outcome] += 1
        return outcome

    # ---- sorts of requests

    async def _stream(self) -> str:
        return await self._read_stream("short stream", self._chat(stream=True))

    async def _whole(self) -> str:
        body = self._chat()
        async with self.post(CHAT, body) as answer:
            status = await _status(answer)
            got = await _json(answer)
        if status != 200:
            return self._refused("short whole", status, got)
        choice = got["choices"][0]
        self.tally.ids.append(got["id"])
        self._compare("short whole", body, choice["message"]["content"])
        if (choice["finish_reason"], got["usage"]["completion_tokens"]) != ("length", body["max_tokens"]):
            return self.tally.fault("short whole", f"not as long as asked: {got}")
        return "finished"

    async def _long(self) -> str:
        prompt = [self.rng.randrange(1_000, 40_000) for _ in range(self.rng.randrange(500, 2_500))]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "stream": True}
        return await self._read_stream("long prompt", body, COMPLETIONS)

    async def _giant(self) -> str:
        """More than the model's context, as ids or as text, or than the server takes at all: it is refused."""
        prompt = self.rng.choice(([5] * (CONTEXT + 1), "word " * 8_000, "x" * (5 * 2**20)))
        huge = len(prompt) > 2**20
        async with self.post(COMPLETIONS, {"model": MODEL, "prompt": prompt}) as answer:
            status = await _status(answer)
            got = await _json(answer)
        if status != (413 if huge else 400):
            return self._refused("giant prompt", status, got)
        return "refused, too large"

    async def _slow(self) -> str:
        body = self._chat(stream=True, max_tokens=60, logprobs=True, top_logprobs=20)
        return await self._read_stream("slow reader", body, pause=0.05)

    async def _leave(self) -> str:
        """Hangs up: within the request, before the answer, or somewhere in it."""
        stream = self.rng.random() < 0.7
        where = self.rng.random()
        body = self._chat(stream=stream, max_tokens=self.rng.choice((20, 800)))
        async with self.post(CHAT, body, part=self.rng.random() if where < 0.2 else 1.0) as answer:
            if where < 0.5:
                await asyncio.sleep(self.rng.random())
                return "left"
            for _ in range(self.rng.randrange(1, 30)):
                if await anext(answer, None) is None:
                    break
        return "left"

    async def _cancel(self) -> str:
        body = self._chat(stream=True, max_tokens=self.rng.choice((20, 800)))
        cancelling: list[asyncio.Task[None]] = []

        def begun(id: str) -> None:
            cancelling.append(asyncio.create_task(self._cancel_soon(id)))

        outcome = await self._read_stream("cancelled", body, begun=begun)
        await asyncio.gather(*cancelling)
        return outcome

    async def _cancel_soon(self, id: str) -> None:
        await asyncio.sleep(self.rng.random() * 0.5)
        method, path = self.rng.choice((("DELETE", f"/v1/requests/{id}"), ("POST", f"/v1/requests/{id}/cancel")))
        async with self.post(path, {}, method=method) as answer:
            if (status := await _status(answer)) not in (200, 404):  # 404: it was over before
                self.tally.fault("cancelled", f"cancelling was answered with {status}")

    # ---- their parts

    def _chat(self, **more: Any) -> dict[str, Any]:
        """A short greedy request, one of a few, whose whole length is known."""
        text = f"Tell me about the number {self.rng.randrange(20)}."
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 20, "ignore_eos": True}
        return {**body, **more}

    async def _read_stream(
        self,
        sort: str,
        body: dict[str, Any],
        path: str = CHAT,
        pause: float = 0.0,
        begun: Callable[[str], None] | None = None,
    ) -> str:
        """Read an event stream to its end; exactly one finish reason or error, and nothing after it."""
        sent = time.monotonic()
        text, finishes, errors, id = "", list[str](), list[str](), ""
        body = {**body, "stream_options": {"include_usage": True}}
        async with self.post(path, body, slow=bool(pause)) as answer:
            if (status := await _status(answer)) != 200:
                return self._refused(sort, status, await _json(answer))
            ended, tokens = False, None
            async for line in answer:
                if not line.startswith(b"data: "):
                    continue
                if ended:
                    return self.tally.fault(sort, f"something after the end: {line!r}")
                if line == b"data: [DONE]":
                    ended = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    errors.append(event["error"]["code"])
                    continue
                if not id:
                    id = event["id"]
                    self.tally.ids.append(id)
                    if begun is not None:
                        begun(id)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                    if piece and not text:
                        self.tally.first.append(time.monotonic() - sent)
                    text += piece
                    finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
                await asyncio.sleep(pause)
        if not ended or len(finishes) + len(errors) != 1:
            return self.tally.fault(sort, f"ended with {finishes} and {errors}, done: {ended}")
        if errors:
            asked = begun is not None and errors == ["request_cancelled"]
            return "cancelled" if asked else self.tally.fault(sort, f"error {errors[0]}")
        if finishes != ["length"] or tokens != body["max_tokens"]:
            return self.tally.fault(sort, f"{finishes[0]} after {tokens} tokens of {body['max_tokens']}")
        if "messages" in body:
            self._compare(sort, body, text)
        return "finished"

    def _compare(self, sort: str, body: dict[str, Any], text: str) -> None:
        """What a greedy request says does not depend on what else runs."""
        key = f"{body['messages'][0]['content']} {body['max_tokens']}"
        if self.tally.answers.setdefault(key, text) != text:
            self.tally.fault(sort, f"another answer to {key!r}: {text!r}, not {self.tally.answers[key]!r}")

    def _refused(self, sort: str, status: int, got: Any) -> str:
        if (status, got["error"]["code"]) in ((503, "overloaded"), (429, "overloaded")):
            return TURNED_AWAY
        return self.tally.fault(sort, f"status {status}: {str(got)[:200]}")

    @asynccontextmanager
    async def post(
        self, path: str, body: Any, *, method: str = "POST", part: float = 1.0, slow: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A request; gives its answer: the status, then the lines of its body. Leaving the context closes the
        connection, whatever is unread.

        Args:
            part: share of the request's bytes that is sent; less than all of them has no answer.
            slow: with as small buffers as the system allows.
        """
        data = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        whole = head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data
        sock = socket.socket()
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if slow else 2**18)
        try:
            writer.write(whole[: int(len(whole) * part)])
            yield _answer(reader)
        finally:
            if self.rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()


async def _answer(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    yield (await reader.readline()).split(b" ")[1]
    length, chunked = 0, False
    while (line := (await reader.readline()).strip().lower()) != b"":
        chunked |= line == b"transfer-encoding: chunked"
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    rest = b""
    async for piece in _pieces(reader, length, chunked):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


async def _pieces(reader: asyncio.StreamReader, length: int, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        yield await reader.readexactly(length)
        return
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _status(answer: AsyncIterator[bytes]) -> int:
    return int(await anext(answer))


async def _json(answer: AsyncIterator[bytes]) -> Any:
    return json.loads(b"".join([line async for line in answer]))
