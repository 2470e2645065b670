"""How far a soak is: a bar in a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from soak_load import TURNED_AWAY, Tally

LINE_SECONDS = 30.0  # between two lines
BAR_SECONDS = 1.0  # between two states of the bar


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Health:
    """Times that the prober, which is another process, writes to a file: a number in a line each."""

    def __init__(self, file: Path) -> None:
        self._file, self._read, self.times = file, 0, list[float]()

    def look(self) -> list[float]:
        """All that came so far, in seconds."""
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]  # the last line may still be on its way
            self._read += len(whole)
            self.times += map(float, whole.split())
        return self.times


def state(elapsed: float, seconds: float, tally: Tally, health: list[float]) -> str:
    """Where it stands, in a line."""
    refused = sum(n for (_, outcome), n in tally.outcomes.items() if outcome == TURNED_AWAY)
    slowest = f"{percentile(health, 0.99) * 1e3:.1f} ms" if health else "not asked yet"
    faults = f", {len(tally.faults)} WRONG" if tally.faults else ""
    ended = tally.outcomes.total()
    return f"{elapsed:.0f}/{seconds:.0f} s, {ended} requests, {refused} refused{faults}, /health p99 {slowest}"


@contextlib.asynccontextmanager
async def showing(
    stage: str, seconds: float, tally: Tally, health: Health, out: TextIO | None = None, every: float = LINE_SECONDS
) -> AsyncIterator[None]:
    """Show how far a stage is that should take so long, while the context lasts.

    Args:
        every: seconds between two lines, where there is no terminal.
    """
    stream, began = out or sys.stderr, time.monotonic()

    def told() -> str:
        return state(time.monotonic() - began, seconds, tally, health.look())

    async def repeat(show: Callable[[], None], pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            show()

    with contextlib.ExitStack() as stack:
        if stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[told]}"))
            bar = stack.enter_context(Progress(*columns, console=Console(file=stream)))
            task = bar.add_task(stage, total=seconds, told="")
            pause = BAR_SECONDS

            def show() -> None:
                bar.update(task, completed=time.monotonic() - began, told=told())
        else:
            pause = every

            def show() -> None:
                print(f"{stage}: {told()}", file=stream, flush=True)

        showing = asyncio.create_task(repeat(show, pause))
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            show()
