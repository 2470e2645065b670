"""A backend without a model: it answers every prompt with the prompt, one byte per token, and notes what it was asked.

Run as a program it serves on a port of the system's choice, for tests that need a process to send signals to; its
arguments: seconds to drain, seconds before each token, other settings as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diastole.chat.tools import HERMES, Format
from diastole.config import ServerConfig
from diastole.engine.trace import ServiceView, StreamView, Trace, View
from diastole.frontend.types import Delta, Likely, TokenLogprob, Usage
from diastole.loops.prompt import check_prompt
from diastole.metrics import Meter
from diastole.params import PoolParams, SamplingParams
from diastole.serve.run import Server, serve
from diastole.types import SLO, Array, UserError

BOS, EOS, VOCAB = 256, 257, 258
WIDTH = 4
CONTEXT = 4096


class FakeTokenizer:
    """A token is a byte."""

    bos_id = BOS
    eos_ids = frozenset({EOS})

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b""


class Asked(NamedTuple):
    id: str
    prompt: list[int]
    params: SamplingParams | PoolParams
    slo: SLO | None
    salt: str
    priority: int


class FakeService:
    """Echoes, or says what it is told to. Its attributes make it slow, endless, refusing or faulty."""

    def __init__(self, name: str = "echo", aliases: tuple[str, ...] = ("parrot",)) -> None:
        self.name, self.aliases = name, aliases
        self.context, self.created, self.vocab = CONTEXT, 1_700_000_000, VOCAB
        self.width = WIDTH
        self.tokenizer = FakeTokenizer()
        self.asked: list[Asked] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.spoken: set[str] = set()  # requests that were given a delta
        self.reset()

    def reset(self) -> None:
        self.priorities = self.approximate = False
        self.pace = 0.0  # seconds before each token
        self.endless = False
        self.stalls = False  # says nothing more once it has begun, for as long as this is true
        self.says: str | None = None  # instead of the prompt
        self.cut = 1  # bytes, or tokens, of each delta
        self.tool_format: Format = HERMES
        self.told: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = []  # messages and tools
        self.wide = 1  # bytes per token of an endless answer
        self.refusal: UserError | None = None  # what the engine says after all checks
        self.fault_after: int | None = None  # tokens before it raises
        self.fault: Exception = RuntimeError("secret detail of a fault")
        self.finish: str | None = None  # instead of "stop" and "length"
        self.vanish = False  # end without a final delta
        self.guessed = (0, 0)  # tokens that it says it guessed ahead, and how many of them were right
        self.late = False  # the deadline passes before the first token
        self.late_prompts: set[str] = set()  # the same, of these prompts only, once another one has its first token
        self.most_running = 0
        self.asked.clear()
        self.aborted.clear()
        self.spoken.clear()

    async def chat_ids(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: dict[str, Any]
    ) -> list[int]:
        if any(m["role"] == "system" for m in messages[1:]):
            raise UserError("a system message must come first", param="messages", code="template_error")
        self.told.append((messages, tools))
        return [BOS, *self.tokenizer.encode("\n".join(m["content"] for m in messages), special=True)]

    async def encode(self, text: str) -> list[int]:
        return [BOS, *self.tokenizer.encode(text, special=False)]

    def check(self, prompt: Sequence[int], params: SamplingParams | PoolParams) -> None:
        check_prompt(prompt, params, self.vocab, self.context, 10**6)

    def room_after(self, prompt: int) -> int:
        return CONTEXT - prompt

    async def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        slo: SLO | None = None,
        salt: str = "",
        priority: int = 0,
    ) -> AsyncIterator[Delta]:
        self.asked.append(Asked(request_id, list(prompt), params, slo, salt, priority))
        if self.refusal is not None:
            raise self.refusal
        while (waits := self.tokenizer.decode(prompt) in self.late_prompts) and not self.spoken:
            await asyncio.sleep(0.002)
        if self.late or waits:
            for i in range(params.n):
                yield Delta(i, "", (), None, "deadline", Usage(len(prompt), 0, 0))
            return
        told = [self._answer(i, prompt, params) for i in range(params.n)]
        answers = [answer for answer, _ in told]
        cut = self.cut
        held = [b""] * params.n
        said = 0
        self.running.add(request_id)
        ended = False
        try:
            live = list(range(params.n))
            for step in range(10**9):
                for i in reversed(live.copy()):
                    await asyncio.sleep(self.pace)
                    while self.stalls and request_id in self.spoken:
                        await asyncio.sleep(0.002)
                    if self.fault_after is not None and said >= self.fault_after:
                        raise self.fault
                    ids = answers[i][step * cut : (step + 1) * cut] if not self.endless else b"x" * self.wide
                    said += len(ids)
                    held[i] += ids
                    text, held[i] = _characters(held[i])
                    finish = None
                    if not self.endless and (step + 1) * cut >= len(answers[i]):
                        live.remove(i)
                        finish = self.finish or ("length" if params.max_tokens == len(answers[i]) else "stop")
                    if self.vanish and finish is not None:
                        return
                    if said > len(live):
                        self.spoken.add(request_id)
                    usage = Usage(len(prompt), len(prompt) // 2, said, *self.guessed)
                    stop = told[i][1] if finish == "stop" else None
                    yield Delta(i, text, tuple(ids), _logprobs(ids, params.logprobs), finish, usage, stop)
                if not live:
                    ended = True
                    return
        finally:
            self.running.discard(request_id)
            if not ended:
                self.aborted.append(request_id)

    async def embed(
        self, prompt: Sequence[int], params: PoolParams, *, request_id: str, slo: SLO | None = None
    ) -> Array:
        """Told by the prompt's first and last token and its length."""
        self.asked.append(Asked(request_id, list(prompt), params, slo, "", 0))
        if self.refusal is not None:
            raise self.refusal
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await asyncio.sleep(self.pace)
            while self.endless:
                await asyncio.sleep(0.001)
            if self.fault_after is not None:
                raise self.fault
            vector = np.array([prompt[0] + 1, prompt[-1] + 1, len(prompt), self.wide], np.float32)
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.running.discard(request_id)
        return vector / np.linalg.norm(vector)

    def _answer(self, choice: int, prompt: Sequence[int], params: SamplingParams) -> tuple[bytes, str | None]:
        """What is said, and the stop string that ends it."""
        text = (f"<{choice}>" if params.n > 1 else "") + (self.says or self.tokenizer.decode(prompt))
        hit = None
        for stop in params.stop:
            text, found, _ = text.partition(stop)
            hit = stop if found else hit
        return text.encode()[: params.max_tokens], hit


def _characters(data: bytes) -> tuple[str, bytes]:
    """Whole characters, and the bytes of an unfinished one."""
    for cut in range(len(data), max(len(data) - 4, -1), -1):
        try:
            return data[:cut].decode(), data[cut:]
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace"), b""


def _logprobs(ids: bytes, top: int | None) -> tuple[TokenLogprob, ...] | None:
    if top is None:
        return None
    return tuple(
        TokenLogprob(i, -0.5, tuple(Likely((i + j) % 256, -0.5 - j if j < 4 else float("-inf")) for j in range(top)))
        for i in ids
    )


class FakeBackend:
    """One or several fakes that are ready at once, or when told."""

    def __init__(self, *services: FakeService, loading: bool = False) -> None:
        self.all = services or (FakeService(),)
        self.services: dict[str, FakeService] = {}
        self.live: dict[str, Any] = {}
        self.pictures: dict[str, Any] = {}
        self.meter = Meter()
        self.steps = Trace()  # tests let it have run
        self.now = 0.0
        self.streams: list[StreamView] = []
        self.watched: list[int] = []  # the "since" of each who asked for the trace
        self.dead = False  # for good
        self.restarting = False
        self.restarts = 0
        self.processes: list[int] = []
        self.reloads: list[tuple[str, dict[str, Any]]] = []
        self.reload_failure: Exception | None = None
        self.failure: Exception | None = None
        self.stopped: float | None = None
        self.deaf = False
        self._loaded = threading.Event()
        if not loading:
            self._loaded.set()

    @property
    def service(self) -> FakeService:
        return self.all[0]

    def finish_loading(self) -> None:
        self._loaded.set()

    async def start(self) -> None:
        while not self._loaded.is_set():
            await asyncio.sleep(0.005)
        if self.failure is not None:
            raise self.failure
        for service in self.all:
            for name in (service.name, *service.aliases):
                self.services[name] = service

    async def stop(self, drain_seconds: float) -> None:
        self.stopped = drain_seconds

    def alive(self) -> bool:
        return bool(self.services) and not self.dead

    def ready(self) -> bool:
        return self.alive() and not self.restarting

    async def reload(self, name: str, changes: Mapping[str, Any]) -> None:
        if self.reload_failure is not None:
            raise self.reload_failure
        self.reloads.append((name, dict(changes)))

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        if self.deaf:
            raise RuntimeError("deaf")
        return {s.name: self.meter.snapshot() for s in self.all}

    async def trace(self, since: int) -> View:
        if self.deaf:
            await asyncio.Event().wait()
        self.watched.append(since)
        services = {s.name: ServiceView(16, len(s.running), len(s.running), 0, self.streams) for s in self.all}
        return View(self.now, self.steps.last, self.steps.since(since), services)


def config(**changes: Any) -> ServerConfig:
    """Settings of a server on a free port."""
    return ServerConfig(**{"port": 0, "drain_seconds": 5.0, **changes})


class Running:
    """A server on a thread, a context."""

    def __init__(self, backend: FakeBackend | None = None, **changes: Any) -> None:
        self.backend = backend or FakeBackend()
        self.said: list[str] = []
        self.server = Server(self.backend, config(**changes), self.said.append)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def service(self) -> FakeService:
        return self.backend.service

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self.server._uvicorn.server_state.connections)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self.server.run())
        except BaseException as e:
            self.error = e

    def stop(self) -> None:
        """As one signal."""
        self._loop.call_soon_threadsafe(self.server.stop)

    def join(self, seconds: float = 20.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the server did not end"

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            self.stop()
            self.stop()
        self.join()


if __name__ == "__main__":
    backend = FakeBackend()
    backend.service.pace = float(sys.argv[2])
    backend.service.asked, backend.service.told = deque(maxlen=64), deque(maxlen=64)  # nobody looks at them there
    serve(backend, config(drain_seconds=float(sys.argv[1]), **json.loads(sys.argv[3])))
