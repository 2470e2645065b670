"""A server with OpenAI's API as a target: requests over HTTP, their answers as server-sent events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any

import httpx
import msgspec

from diastole.bench.load.arrivals import Plan
from diastole.bench.load.drive import PATIENCE, Run, Tell, Timeline, nobody
from diastole.bench.load.work import Wish
from diastole.clock import Clock, RealClock
from diastole.types import SLO, UserError

CONNECT = 10.0  # seconds
LINE = 1 << 20  # bytes of an event
ANSWER = 256 << 20  # bytes of a whole answer
REFUSAL = 64 << 10  # bytes of an error that are read
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def says(self) -> bool:
        """Whether there is a piece of output in it."""
        delta = self.delta or _Delta()
        return bool(self.text or delta.content or delta.reasoning_content)


class _Cached(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    completion_tokens: Count
    prompt_tokens: Count = 0
    prompt_tokens_details: _Cached | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Listed(msgspec.Struct):
    id: str
    max_model_len: Count | None = None


class _List(msgspec.Struct):
    data: list[_Listed]


# ---- ways of asking: path, and what of a prompt goes into the body

Ask = Callable[[list[int], Callable[[Sequence[int]], str]], dict[str, Any]]
ASKS: Mapping[str, tuple[str, Ask]] = {
    "ids": ("/v1/completions", lambda ids, decode: {"prompt": ids}),
    "text": ("/v1/completions", lambda ids, decode: {"prompt": decode(ids)}),
    "chat": ("/v1/chat/completions", lambda ids, decode: {"messages": [{"role": "user", "content": decode(ids)}]}),
}


class Remote:
    """A server.

    Args:
        url: with or without /v1.
        model: as the server calls it; empty: the first that it lists.
        send: how prompts are sent, of ``ASKS``: as token ids, as text, or as a user's message.
        decode: makes text of ids.
        ignore_eos: ask for all tokens, whatever the model would say; some servers refuse to be asked so.
        key: to show; empty: none.

    Raises:
        UserError: no server answers there, or it has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        send: str = "ids",
        decode: Callable[[Sequence[int]], str] = lambda ids: "",
        *,
        ignore_eos: bool = True,
        key: str = "",
        patience: float = PATIENCE,
        clock: Clock | None = None,
    ) -> None:
        if send not in ASKS:
            raise UserError(f"--send must be one of {', '.join(ASKS)}, not {send!r:.40}", param="send")
        self._base = url.rstrip("/").removesuffix("/v1")
        self._path, self._ask = ASKS[send]
        self._decode, self._ignore_eos, self._patience = decode, ignore_eos, patience
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._clock = clock or RealClock()
        listed = self._models(url)
        chosen = next((m for m in listed if m.id == (model or listed[0].id)), None) if listed else None
        if chosen is None:
            known = ", ".join(m.id for m in listed[:20])
            raise UserError(f"the server has no model {model!r}; it has {known or 'none'}", param="served")
        self.model, self.context = chosen.id, chosen.max_model_len  # tokens; None: it does not say

    def _models(self, url: str) -> list[_Listed]:
        try:
            with httpx.Client(headers=self._headers, timeout=CONNECT) as http:
                answer = http.get(f"{self._base}/v1/models").raise_for_status()
            return msgspec.json.decode(answer.content, type=_List).data
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, UnicodeError) as e:
            raise UserError(f"no server with OpenAI's API answers at {url}: {e}", param="url") from None

    def run(self, wishes: Sequence[Wish], plan: Plan, slo: SLO | None = None, tell: Tell = nobody) -> Run:
        bodies = [self._body(w) for w in wishes]  # beforehand: nothing of it may make a request late
        headers = {**self._headers}
        if slo is not None:  # Diastole's and the llm-d gateway's; others do not look at them
            headers |= {"x-slo-ttft-ms": f"{slo.first * 1e3:.3f}", "x-slo-tpot-ms": f"{slo.gap * 1e3:.3f}"}
        return asyncio.run(self._run(bodies, plan, headers, tell))

    def _body(self, wish: Wish) -> bytes:
        body = {
            "model": self.model,
            **self._ask(wish.prompt, self._decode),
            "max_tokens": wish.output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body)

    async def _run(self, bodies: Sequence[bytes], plan: Plan, headers: dict[str, str], tell: Tell) -> Run:
        timelines: list[Timeline] = []
        ended = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        alive = 0

        def over(task: asyncio.Task[None]) -> None:
            nonlocal alive
            alive -= 1
            ended.set()
            tell(len(timelines) - alive)

        timeout = httpx.Timeout(self._patience, connect=CONNECT)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # nobody waits for a connection
        began = self._clock.now()
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits) as http:
            try:
                while len(timelines) < len(bodies):
                    now = self._clock.now() - began
                    due = plan.due(len(timelines), alive, now)
                    if due > now:
                        ended.clear()
                        await _wait(ended, due - now)
                        continue
                    timeline = Timeline(now, now - due, told=False)
                    tasks.append(asyncio.create_task(self._one(http, bodies[len(timelines)], timeline, began)))
                    timelines.append(timeline)
                    alive += 1
                    tasks[-1].add_done_callback(over)
                    await asyncio.sleep(0)  # it goes out now, also where the next one is due already
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return Run(timelines, self._clock.now() - began)

    async def _one(self, http: httpx.AsyncClient, body: bytes, timeline: Timeline, began: float) -> None:
        """Send one request and note what comes. Nothing that a server does is raised."""
        try:
            async with asyncio.timeout(self._patience):
                async with http.stream("POST", self._base + self._path, content=body) as response:
                    if response.status_code == 200:
                        await self._hear(response, timeline, began)
                    else:
                        timeline.error = f"refused: {response.status_code} {await _reason(response)}".strip()
        except TimeoutError:
            timeline.error = f"it took more than {self._patience:g} s"
        except httpx.HTTPError as e:
            timeline.error = f"the connection failed: {type(e).__name__}"
        except _Broken as e:
            timeline.error = str(e)
        if not timeline.told:
            timeline.tokens = len(timeline.times)

    async def _hear(self, response: httpx.Response, timeline: Timeline, began: float) -> None:
        async for data in _events(response):
            at = self._clock.now() - began
            if data == b"[DONE]":
                break
            try:
                chunk = msgspec.json.decode(data, type=_Chunk)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
                raise _Broken(f"an event is no chunk of an answer: {e}") from None
            if chunk.error is not None:
                raise _Broken(f"the server stopped: {str(chunk.error)[:200]}")
            if any(choice.says for choice in chunk.choices):
                timeline.times.append(at)
            for choice in chunk.choices:
                timeline.finish = choice.finish_reason or timeline.finish
            if chunk.usage is not None and chunk.usage.completion_tokens:
                details = chunk.usage.prompt_tokens_details
                timeline.tokens, timeline.told = chunk.usage.completion_tokens, True
                timeline.prompt = chunk.usage.prompt_tokens
                timeline.cached = (details.cached_tokens if details else 0) or 0
        if timeline.finish is None:
            raise _Broken("the answer broke off")
        if timeline.finish == "error":
            raise _Broken("the server ended it: error")


class _Broken(Exception):
    """What the server sends is no whole answer, and why."""


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """For the event, and no longer than so many seconds, which may be infinite."""
    try:
        await asyncio.wait_for(event.wait(), None if math.isinf(seconds) else seconds)
    except TimeoutError:
        return


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Data of each event, without its name.

    Raises:
        _Broken: a line or the whole is too large.
    """
    held, read = b"", 0
    async for piece in response.aiter_raw():
        read += len(piece)
        *lines, held = (held + piece).split(b"\n")
        if read > ANSWER or max(map(len, (held, *lines))) > LINE:
            raise _Broken("the server sent more than an answer can be")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def _reason(response: httpx.Response) -> str:
    """What an answer that is an error says, shortened."""
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > REFUSAL:
            break
    try:
        found = msgspec.json.decode(body)
        return str(found["error"]["message"])[:200]
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError, TypeError):
        return ""
