"""Logs on standard error, of the server's process and the engine's alike: lines for people, or JSON for machines.

A record may carry ``fields`` (``extra={"fields": {...}}``), plain values by name. What a client made can stand in them:
both forms escape whatever is not printable, and cut what is long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from diastole.config import ServerConfig

log = logging.getLogger("diastole")

LONGEST = 2000  # characters of a message or a field
LONGEST_TRACE = 20_000  # characters of a traceback
BACKLOG = 10_000  # lines that may wait for a slow reader
LAST_SECONDS = 2.0  # for lines still waiting when the process ends


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    return getattr(record, "fields", {})


class TextLines(logging.Formatter):
    """``time LEVEL logger: message name=value ...``, in local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _printable(record.message)
        pairs = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record) + pairs


class JsonLines(logging.Formatter):
    """One JSON object: time (RFC 3339, UTC), level, logger, message, the fields, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:LONGEST],
        }
        for name, value in _fields(record).items():
            line[name] = value if isinstance(value, int | float) else str(value)[:LONGEST]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-LONGEST_TRACE:]
        return json.dumps(line)  # nothing but ASCII


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:LONGEST])


def _word(value: object) -> str:
    """A value that reads as one word, quoted if it would not."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & set(" \"'=")
    return text[:LONGEST] if plain and text else json.dumps(text[:LONGEST])


FORMS: Mapping[str, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


class Lines(logging.Handler):
    """Writes to a stream from a thread of its own, so that a reader who stalls holds up nobody.

    Lines that find the queue full are dropped, and their number is told as soon as there is room.
    """

    def __init__(self, stream: TextIO, form: logging.Formatter, backlog: int = BACKLOG) -> None:
        super().__init__()
        self.setFormatter(form)
        self._stream, self._form = stream, form
        self._queue: queue.Queue[str | None] = queue.Queue(backlog)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="diastole-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:  # a call to the logger that is wrong: what logging itself does about it
            self.handleError(record)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            self._put(line)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._put(self._form.format(_lost(dropped)))

    def _put(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the stream closed: there is nobody to tell
            return

    def close(self) -> None:
        """Write what waits, for a moment at most. ``logging`` calls it when the process ends."""
        with contextlib.suppress(queue.Full):  # nobody reads: there is no way left to say so
            self._queue.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        super().close()


def _lost(dropped: int) -> logging.LogRecord:
    message = "%d log lines were dropped: standard error was not read fast enough"
    return logging.LogRecord("diastole", logging.WARNING, __file__, 0, message, (dropped,), None)


def start(config: ServerConfig) -> None:
    """Send everything that this process says from now on where the settings want it, warnings and faults too."""
    handler = Lines(sys.stderr, FORMS[config.log_format]())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "httpx", "httpcore", "urllib3"):  # their life is ours to tell
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: log.warning("%s", message)
    sys.excepthook = _fault


def _fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends by a fault", exc_info=(kind, error, trace))
