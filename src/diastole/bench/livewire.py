"""Streams of live input through a server, beside prompts over HTTP: what its users see.

Each stream sends pieces at its own pace over a WebSocket. What the server says of a chunk (late or in time, since the
engine had its last sample) is counted, and beside it what its sender saw: from the moment that the last sample was
there to be sent until the answer had come. Input is made up: noise costs a model as much as anything else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import numpy as np

from diastole.bench.live import run_delay
from diastole.bench.livemix import ANSWER, CHATS, SHORT
from diastole.client import stream
from diastole.types import Array, UserError

PIECE = 0.08  # seconds of a piece that is sent
PATIENCE = 300.0  # seconds for an answer
WATCHED = 1.0  # seconds between two looks at how busy the language model is
PAUSE = 0.05  # seconds of a client that would make it busier than it shall be
STEPS = "diastole_step_seconds_sum"


@dataclass(slots=True)
class Heard:
    """What became of the chunks of one model's streams."""

    streams: int
    period: float = 0.0  # seconds of a chunk, in which its answer is owed
    chunks: int = 0
    met: int = 0  # in time, as the server says
    seen: int = 0  # in time, as their senders saw it
    latencies: list[float] = field(default_factory=list)  # seconds, of the oldest chunk of each answer: the server's
    waits: list[float] = field(default_factory=list)  # and the senders'


@dataclass(slots=True)
class Wired:
    """A run, without its beginning."""

    models: dict[str, Heard]
    seconds: float = 0.0
    busy: float = 0.0  # seconds of steps of the language model
    answers: list[float] = field(default_factory=list)  # of the language model: seconds that each took
    held_up: float = 0.0  # seconds in which this thread, the senders', could have run and was not let

    @property
    def share(self) -> float:
        """Of all chunks in time, as the server says."""
        return sum(h.met for h in self.models.values()) / max(sum(h.chunks for h in self.models.values()), 1)


class Line:
    """One stream: what it sends, and when what it hears must have come.

    Args:
        heard: takes what it hears from ``since`` on.
    """

    def __init__(self, heard: Heard, seed: int, since: float, until: float) -> None:
        self._heard, self._since, self._until = heard, since, until
        self._rng = np.random.default_rng(seed)
        self._open = asyncio.Event()
        self._began = 0.0
        self._rate, self._channels, self._samples = 0.0, 0, 0  # a second; of a sample; of a piece

    async def pieces(self) -> AsyncIterator[Array]:
        """Each as soon as it is there; the first a while after the stream was opened."""
        await self._open.wait()
        x = (0.05 * self._rng.normal(size=(self._samples, self._channels))).astype(np.float32)
        for k in range(1, int((self._until - self._began) / self._period) + 1):
            await asyncio.sleep(self._began + k * self._period - time.monotonic())
            yield x

    @property
    def _period(self) -> float:
        return self._samples / self._rate

    def hear(self, event: Mapping[str, Any], now: float) -> None:
        """An event of the stream, as the server sends it."""
        match event["type"]:
            case "ready":
                self._rate, self._channels = float(event["rate"]), len(event["channels"])
                self._samples = max(round(PIECE * self._rate), 1)
                self._began = now + float(self._rng.uniform(0, self._period))
                self._open.set()
            case "chunk":
                heard, chunks = self._heard, event["chunks"]
                period = (event["end"] - event["start"]) / chunks
                heard.period = max(heard.period, period)  # the last one is short
                if now < self._since or now > self._until:
                    return
                waits = [now - self._there(event["start"] + (j + 1) * period) for j in range(chunks)]
                heard.chunks += chunks
                heard.met += chunks - event["late_chunks"]
                heard.seen += sum(wait <= heard.period for wait in waits)
                heard.waits.append(waits[0])
                heard.latencies.append(event["latency_ms"] / 1000)

    def _there(self, second: float) -> float:
        """When the piece with this second of the stream was there to be sent."""
        return self._began + math.ceil(second / self._period - 1e-6) * self._period


class Desk:
    """Clients of the language model, which keep it busy for a share of the time.

    Args:
        text: the model as the server calls it.
    """

    def __init__(self, http: httpx.AsyncClient, text: str, load: float) -> None:
        self._http, self._text, self._load = http, text, load
        self._began = time.monotonic()
        self._before = math.nan
        self.busy = 0.0  # seconds of its steps
        self.answers: list[float] = []

    async def look(self) -> None:
        """How long its steps took until now."""
        page = (await self._http.get("/metrics")).text
        total = steps_seconds(page, self._text)
        self._before = total if math.isnan(self._before) else self._before
        self.busy = total - self._before

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(WATCHED)

    async def ask(self, prompt: Sequence[int], seed: int) -> None:
        """One client: it asks when it was answered, and waits while the model is busier than it shall be."""
        rng = Random(seed)
        while True:
            if self.busy > self._load * (time.monotonic() - self._began):
                await asyncio.sleep(PAUSE)
                continue
            fresh = [rng.randrange(100, 200), *prompt[1:]]  # nothing of it is in the cache
            body = {"model": self._text, "prompt": fresh, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
            asked = time.monotonic()
            answer = await self._http.post("/v1/completions", json=body)
            if answer.status_code != 200:
                raise UserError(f"the server refused a prompt: {answer.text[:200]}", param="url")
            self.answers.append(time.monotonic() - asked)


def steps_seconds(page: str, model: str) -> float:
    """Seconds of a model's steps, by a page of metrics.

    Raises:
        UserError: it does not tell.
    """
    for line in page.splitlines():
        if line.startswith(STEPS) and f'"{model}"' in line:
            return float(line.rsplit(" ", 1)[1])
    raise UserError(f"/metrics do not tell of steps of {model!r}: is it a model of Diastole's?", param="served")


async def run(
    url: str,
    text: str,
    prompt: Sequence[int],
    models: Mapping[str, tuple[str, Mapping[str, Any]]],
    streams: int,
    seconds: float,
    load: float,
    warm: float,
    long: int = 1,
    key: str = "",
    tell: Callable[[float], None] = lambda done: None,
) -> Wired:
    """So many streams, dealt out to the models, for so long after a beginning of ``warm`` seconds that does not count.

    Args:
        text: the language model as the server calls it.
        models: by what they are called here, as the server calls them and their streams' options.
        load: share of the time that it is to be busy; 1: all of it.
        long: clients that ask it ``prompt`` again and again, each when it was answered, beside some that chat.

    Raises:
        UserError: the server cannot be reached, or refuses something.
    """
    since = time.monotonic() + warm
    until = since + seconds
    found = Wired({name: Heard(0) for name in models}, seconds)

    async def one(name: str, seed: int) -> None:
        heard = found.models[name]
        heard.streams += 1
        line = Line(heard, seed, since, until)
        model, options = models[name]
        async for event in stream(url, model, line.pieces(), options=options, api_key=key, chunks=True):
            line.hear(event, time.monotonic())

    async def count(desk: Desk) -> None:
        """Of what the language model did, what counts."""
        await asyncio.sleep(since - time.monotonic())
        await desk.look()
        busy, answers, waited = desk.busy, len(desk.answers), run_delay()
        while (now := time.monotonic()) < until:
            tell(now - since)
            await asyncio.sleep(min(WATCHED, until - now))
        await desk.look()
        found.busy, found.answers = desk.busy - busy, desk.answers[answers:]
        found.held_up = run_delay() - waited

    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE) as http:
        desk = Desk(http, text, load)
        prompts = [prompt] * long + [prompt[:SHORT]] * CHATS
        asking = [desk.watch(), *(desk.ask(p, i) for i, p in enumerate(prompts))]
        rest = [asyncio.create_task(work) for work in asking]
        names = list(models)
        lines = [asyncio.create_task(one(names[i % len(names)], i)) for i in range(streams)]
        counting = asyncio.create_task(count(desk))
        try:
            needed = {*lines, counting}
            while needed:
                over, _ = await asyncio.wait({*needed, *rest}, return_when=asyncio.FIRST_COMPLETED)
                for task in over:
                    task.result()  # what it raised
                needed -= over
        except httpx.HTTPError as e:
            raise UserError(f"the server at {url} cannot be reached: {type(e).__name__} {e}", param="url") from None
        finally:
            for task in (*rest, *lines, counting):
                task.cancel()
            await asyncio.gather(*rest, *lines, counting, return_exceptions=True)
    return found
