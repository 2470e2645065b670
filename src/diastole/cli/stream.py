"""``diastole stream``: a recording, a microphone or sensors through a model of live input."""

from __future__ import annotations

import ast
import asyncio
import json as jsonlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.cli.monitor import Monitor
    from diastole.signals.findings import Findings
    from diastole.signals.source import Source
    from diastole.types import Array

CONCEALED = 1.0  # seconds that are filled with zeros at most
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


def stream(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a model of live input, e.g. [bold]phasenet[/]")],
    source: Annotated[
        str, typer.Argument(help="a file (sound, MiniSEED, EDF, .npy), mic, lsl:NAME or seedlink:HOST/NET.STA")
    ],
    url: Annotated[str, typer.Option(help="a server's; else the model runs here")] = "",
    api_key: Annotated[str, typer.Option(help="for that server", envvar="DIASTOLE_API_KEY")] = "",
    rate: Annotated[float, typer.Option(min=0, help="samples a second of .npy and .csv")] = 0.0,
    channels: Annotated[str, typer.Option(help="names of the source's channels, with commas between")] = "",
    realtime: Annotated[bool, typer.Option("--realtime", help="play a file at its own pace")] = False,
    json: Annotated[bool, typer.Option("--json", help="print events as JSON lines")] = False,
    out: Annotated[
        Path | None, typer.Option(help="keep what is found too: .jsonl, .csv, or .xml (picks as QuakeML)")
    ] = None,
) -> None:
    """Stream a signal through a model and watch what it finds.

    A model's own options are given as flags: --threshold-p 0.3, --latency-ms 80, --align running. In a terminal a live
    view shows the signal, the latest events and whether deadlines are kept; otherwise events are printed line by line.
    Ctrl-C ends a live source: what was heard until then is answered. Where samples are missing for more than a second,
    the model begins anew.
    """
    from diastole.cli.monitor import Monitor
    from diastole.signals.findings import findings

    options = model_options(context.args)
    opened = _source(source, rate, channels)
    try:
        kept = nullcontext() if out is None else findings(out, opened.about)
        monitor = Monitor(model, source, opened.about, plain=json or not sys.stdout.isatty(), as_json=json)
        try:
            with kept as file:
                asyncio.run(_run(model, opened, options, url, api_key, realtime, monitor, file))
        except KeyboardInterrupt:
            pass
        finally:
            monitor.close()
    finally:
        opened.close()


def model_options(args: list[str]) -> dict[str, Any]:
    """A model's options from flags that only it knows.

    Raises:
        UserError: something is no flag with a value.
    """
    found: dict[str, Any] = {}
    rest = list(args)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not name:
            raise UserError(f"{flag!r:.60} is not understood: a model's options are --name value", param="options")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        try:
            found[name.replace("-", "_")] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            found[name.replace("-", "_")] = value
    return found


def _source(name: str, rate: float, channels: str) -> Source:
    from diastole.signals.source import Recorded, numbers, source

    names = tuple(c.strip() for c in channels.split(",") if c.strip())
    path = Path(name).expanduser()
    if rate and path.suffix.lower() in {".npy", ".csv", ".txt"}:
        return numbers(path, rate, names)
    found = source(name)
    if names and isinstance(found, Recorded):
        if len(names) != found.x.shape[1]:
            raise UserError(f"{name} has {found.x.shape[1]} channels, and {len(names)} are named", param="channels")
        return Recorded(found.x, found.about._replace(channels=names), missing=found.missing)
    return found


async def _run(
    model: str,
    source: Source,
    options: Mapping[str, Any],
    url: str,
    api_key: str,
    realtime: bool,
    monitor: Monitor,
    kept: Findings | None,
) -> None:
    about = source.about
    with _interruptible() as enough:
        pieces = _paced(source, realtime and not about.live, monitor, enough)
        names: list[str] | int = list(about.channels)
        if url:
            from diastole.client import stream as remote

            events = remote(
                url, model, pieces, rate=about.rate, channels=names, options=options, api_key=api_key, chunks=True,
                resample=True, lost="drop",
            )  # fmt: skip
        else:
            events = _here(model, pieces, about.rate, names, options)
        async for event in events:
            monitor.show(event)
            if kept is not None:
                kept.take(event)


@contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """Set by the first interruption from the keyboard; the second one is as usual."""
    loop, enough = asyncio.get_running_loop(), asyncio.Event()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        enough.set()

    loop.add_signal_handler(signal.SIGINT, first)
    try:
        yield enough
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _paced(
    source: Source, realtime: bool, monitor: Monitor, enough: asyncio.Event
) -> AsyncIterator[tuple[int, Array]]:
    """Pieces of a source, which may block, each with the number of its first sample; a file's at its own pace if
    wished. What is missing for up to a second is zero."""
    import numpy as np

    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    iterator = iter(source)
    waiting = asyncio.create_task(enough.wait())
    try:
        while True:
            coming = asyncio.create_task(asyncio.to_thread(next, iterator, None))
            await asyncio.wait({coming, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if enough.is_set():
                source.close()  # and so whoever waits for it hears of the end
            if (piece := await coming) is None or enough.is_set():
                return
            x, first = piece.x, sent if piece.first is None else piece.first
            if 0 < first - sent <= CONCEALED * source.about.rate:
                x = np.concatenate([np.zeros((first - sent, x.shape[1]), np.float32), x])
                first = sent
            sent = max(sent, first + len(x))
            if realtime:
                await asyncio.sleep(max(began + sent / source.about.rate - loop.time(), 0))
            monitor.hear(x)
            yield first, x
    finally:
        waiting.cancel()
        source.close()


async def _here(
    model: str,
    pieces: AsyncIterator[tuple[int, Array]],
    rate: float,
    channels: list[str] | int,
    options: Mapping[str, Any],
) -> AsyncIterator[dict[str, Any]]:
    """The same events as a server's, of a model in this process."""
    from diastole.config import Config, EngineConfig, ServiceConfig
    from diastole.frontend.backend import Backend
    from diastole.frontend.link import Thread
    from diastole.serve.hello import Converter, Hello
    from diastole.serve.livesession import LiveSession

    config = Config(engine=EngineConfig(), service={"": ServiceConfig(model=model, max_streams=1)})
    backend = Backend(config, Thread)
    await backend.start()
    try:
        if not backend.live:
            raise UserError(f"{model} answers texts: use diastole chat or diastole generate", param="model")
        service = next(iter(backend.live.values()))
        hello = Hello(
            rate=rate, channels=channels, resample=True, options=dict(options), chunks=True, indexed=True, lost="drop"
        )
        session = LiveSession(service, hello.params(), Converter(hello, service.card), True)
        await session.opened()
        feeding = asyncio.create_task(_feed(session, pieces))
        try:
            async for event in session.follow(0):
                found = jsonlib.loads(event)
                if found["type"] == "error" and found.get("fatal"):
                    raise UserError(found["message"], param=found.get("param"), code=found.get("code"))
                yield found
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await session.close()
    finally:
        await backend.stop(0)


async def _feed(session: Any, pieces: AsyncIterator[tuple[int, Array]]) -> None:
    import numpy as np

    try:
        async for first, x in pieces:
            await session.room()
            session.feed(first.to_bytes(8, "little", signed=True) + np.ascontiguousarray(x, "<f4").tobytes())
    finally:
        session.end()
