"""Logs: nothing that a client made can forge a line, and a reader who stalls holds up nobody."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from datetime import datetime

from diastole.frontend.logs import LONGEST, JsonLines, Lines, TextLines

EVIL = "a\n2026 INFO diastole: forged \x1b[2J\x9b31m \u2028\ud800" + "x" * 5000


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("diastole.serve", logging.INFO, "", 0, message, args, None)
    made.fields = fields
    return made


def test_json_is_one_object_on_one_ascii_line() -> None:
    line = JsonLines().format(record("%s", EVIL, model=EVIL, status=200, ttft=0.25, odd=["a"]))
    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert list(read)[:4] == ["time", "level", "logger", "message"]
    assert read["time"].endswith("Z")
    assert abs(datetime.fromisoformat(read["time"]).timestamp() - record("").created) < 60
    assert (read["level"], read["logger"]) == ("info", "diastole.serve")
    assert len(read["message"]) == len(read["model"]) == LONGEST
    assert (read["status"], read["ttft"], read["odd"]) == (200, 0.25, "['a']")


def test_text_is_one_printable_line() -> None:
    line = TextLines().format(
        record("%s", EVIL, model=EVIL, route="/v1/models", plain="a b", ttft=0.123456789, none="")
    )
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 8 * LONGEST
    assert line.endswith(' route=/v1/models plain="a b" ttft=0.123457 none=""')


def test_a_fault_is_told_with_its_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record("fault")
        made.exc_info = sys.exc_info()
    read = json.loads(JsonLines().format(made))
    assert read["message"] == "fault"
    assert read["exception"].endswith("ValueError: why")
    assert "Traceback" in TextLines().format(made)


def test_a_reader_who_stalls_holds_up_nobody() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        lines = Lines(stream, JsonLines(), backlog=100)
        done = threading.Event()

        def log() -> None:
            for i in range(5000):
                lines.emit(record("%s", "y" * 200, n=i))
            done.set()

        threading.Thread(target=log, daemon=True).start()
        assert done.wait(20)  # far more than pipe and queue hold, and nobody reads
        got: list[str] = []
        with os.fdopen(reading) as reader:
            thread = threading.Thread(target=lambda: got.extend(reader), daemon=True)
            thread.start()
            lines.close()
            stream.close()
            thread.join(20)
    read = [json.loads(line) for line in got]
    told = [int(r["message"].split()[0]) for r in read if "dropped" in r["message"]]
    assert len(read) - len(told) + sum(told) == 5000
    assert sum(told) > 1000


def test_a_reader_who_is_gone_is_no_fault() -> None:
    stream = io.StringIO()
    lines = Lines(stream, TextLines())
    stream.close()
    lines.emit(record("hello"))
    lines.close()


def test_all_that_a_process_says_is_json() -> None:
    code = (
        "import logging, warnings\n"
        "from diastole.config import ServerConfig\n"
        "from diastole.frontend import logs\n"
        "logs.start(ServerConfig(log_format='json', log_level='warning'))\n"
        "logging.getLogger('diastole.x').info('too quiet')\n"
        "logging.getLogger('elsewhere').warning('%d lines\\nof text', 2)\n"
        "warnings.warn('careful', stacklevel=1)\n"
        "raise RuntimeError('boom')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    read = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(r["level"], r["message"]) for r in read] == [
        ("warning", "2 lines\nof text"),
        ("warning", "careful"),
        ("critical", "the process ends by a fault"),
    ]
    assert read[2]["exception"].endswith("RuntimeError: boom")
