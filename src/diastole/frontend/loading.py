"""A bar in the terminal while weights load. Short loads, and those that nobody watches, show none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 0.5  # seconds that pass before it shows


class LoadingBar:
    """Tensors read, of how many. A context manager; it leaves nothing on the screen.

    Args:
        name: of what loads.
        stream: where it is drawn, if that is a terminal.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self.name, self.stream = name, stream or sys.stderr
        self._began = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None

    def tell(self, done: int, total: int) -> None:
        """So many tensors are read."""
        if self._bar is None and self.stream.isatty() and time.monotonic() - self._began > PATIENCE:
            self._bar = self._draw(total)
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done)

    def _draw(self, total: int) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(file=self.stream), transient=True)
        progress.start()
        return progress, progress.add_task(f"converting the weights of {self.name}", total=total)

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
