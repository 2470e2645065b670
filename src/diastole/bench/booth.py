"""A contender in a process of its own, so that its threads, memory and libraries meet nobody else's."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from diastole.bench.field import Entry
from diastole.bench.limits import Needs
from diastole.bench.task import Prompt
from diastole.types import UserError


class Booth:
    """Runs one contender and passes calls on to it. While it is not asked, it waits and takes no processor time."""

    def __init__(self, entry: Entry, threads: int, streams: int, context: int) -> None:
        self.entry = entry
        away = multiprocessing.get_context("spawn")
        self._line, other = away.Pipe()
        self._process = away.Process(target=_serve, args=(other, entry, threads, streams, context), daemon=True)
        self._process.start()
        other.close()

    def ready(self) -> int:
        """Wait until it is loaded; the size of its vocabulary.

        Raises:
            UserError: it could not be.
        """
        return int(self._answer())

    def prefill(self, prompt: Prompt) -> float:
        return float(self._ask("prefill", prompt))

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._ask("begin", prompts)

    def decode(self, steps: int) -> float:
        return float(self._ask("decode", steps))

    def end(self) -> None:
        self._ask("end")

    def needs(self) -> Needs:
        """Of Diastole only: see ``limits``."""
        needs: Needs = self._ask("needs")
        return needs

    def _ask(self, what: str, *args: Any) -> Any:
        self._line.send((what, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            ok, value = self._line.recv()
        except EOFError:
            raise UserError(f"{self.entry.name} ended unexpectedly", param="contender") from None
        if not ok:
            raise UserError(f"{self.entry.name}: {value}", param="contender")
        return value

    def __enter__(self) -> Booth:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(line: Connection, entry: Entry, threads: int, streams: int, context: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - libraries talk; it lives as long as the process
    try:
        contender = entry.make(threads, streams, context)
        line.send((True, contender.vocab))
        while True:
            what, args = line.recv()
            line.send((True, getattr(contender, what)(*args)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as e:
        if os.environ.get("DIASTOLE_DEBUG") == "1":
            traceback.print_exc()
        line.send((False, getattr(e, "message", None) or f"{type(e).__name__}: {e}"))
