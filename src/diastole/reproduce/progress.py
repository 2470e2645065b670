"""How far a reproduction has come: bars for people who watch, silence for everybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Shown(Protocol):
    """Where progress is shown."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """While inside, something of ``total`` steps is done; call what it gives after each."""
        ...


class Silent:
    """Nowhere."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: None


class Bars:
    """One bar for each thing that is being done, on a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        if not self._bars.tasks:
            self._bars.start()
        task = self._bars.add_task(what, total=total)
        try:
            yield lambda: self._bars.advance(task)
        finally:
            self._bars.remove_task(task)
            if not self._bars.tasks:
                self._bars.stop()
