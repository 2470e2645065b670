"""Recorded loads: readers of public traces of language-model servers. The format is told by what a file holds.

azure     Azure LLM inference: CSV with TIMESTAMP, ContextTokens, GeneratedTokens
burstgpt  BurstGPT: CSV with Timestamp (seconds), Model, Request tokens, Response tokens, Total tokens, Log Type
mooncake  Mooncake: JSON lines with timestamp (ms), input_length, output_length, hash_ids (of blocks of 512 tokens)
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from diastole.types import UserError

LARGEST = 512 << 20  # bytes of a file
ROWS = 2_000_000
TOKENS = 10_000_000  # of a prompt or an answer
SECONDS = 1e12  # of a time
LINE = 1 << 20  # bytes; a Mooncake row of the longest prompt has 20,000 block hashes
BLOCK = 512  # tokens that one of Mooncake's hashes stands for
_COUNT = re.compile(r"[0-9]{1,12}")


class Recorded(NamedTuple):
    """One request of a trace."""

    at: float  # seconds from the first
    prompt: int  # tokens
    output: int  # tokens
    blocks: tuple[int, ...] = ()  # hashes of the prompt's blocks; the same hash is the same text after the same text


@dataclass(frozen=True, slots=True)
class Trace:
    """A file's requests in order of time."""

    name: str
    format: str
    rows: tuple[Recorded, ...]
    skipped: int = 0  # rows without a prompt or an answer: requests that failed
    block: int = 0  # tokens of a block; 0: the format tells of none


def read(path: Path) -> Trace:
    """A trace of any known format.

    Raises:
        UserError: the file cannot be read, is of no known format or too large, or a row is wrong; it names the line and
            the field.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST >> 20} MiB: cut it", param="trace")
        return _read(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}", param="trace") from None


def _read(path: Path) -> Trace:
    lines: Iterator[tuple[int, str]] = _lines(path)
    number, head = next(lines, (1, ""))
    parse: Callable[[str], Recorded]
    if head.startswith("{"):
        format, parse, block = "mooncake", _mooncake, BLOCK
        lines = chain([(number, head)], lines)
    else:
        block = 0
        format, parse = _csv(path, number, head)
    rows: list[Recorded] = []
    skipped = 0
    for number, line in lines:
        try:
            row = parse(line)
        except _Wrong as e:
            raise UserError(f"{path}, line {number}: {e}", param="trace") from None
        if row.prompt and row.output:
            rows.append(row)
        else:
            skipped += 1
        if number > ROWS:
            raise UserError(f"{path} has more than {ROWS:,} rows: cut it", param="trace")
    if not rows:
        raise UserError(f"{path} holds no request that was answered", param="trace")
    rows.sort(key=lambda r: r.at)
    first = rows[0].at
    return Trace(path.name, format, tuple(r._replace(at=r.at - first) for r in rows), skipped, block)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold something, with their numbers from 1."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise UserError(f"{path}, line {number}: it has more than {LINE} bytes", param="trace")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise UserError(f"{path}, line {number}: this is not UTF-8 text", param="trace") from None
            if text:
                yield number, text


class _Wrong(Exception):
    """A row is wrong: in which field, and what would be right."""


# ---- tables


def _csv(path: Path, number: int, head: str) -> tuple[str, Callable[[str], Recorded]]:
    """The format whose columns a header names, and what reads its rows."""
    names = [n.strip() for n in head.split(",")]
    for format, (columns, time) in _TABLES.items():
        if names[0] == columns[0]:
            missing = [c for c in columns if c not in names]
            if missing:
                raise UserError(f"{path}, line {number}: {format} needs a column {missing[0]!r}", param="trace")
            return format, _Table(names, columns, time)
    raise UserError(
        f"{path}, line {number}: no known trace begins so; it must be Azure's CSV (TIMESTAMP,ContextTokens,"
        "GeneratedTokens), BurstGPT's CSV (Timestamp,Model,Request tokens,...) or Mooncake's JSON lines",
        param="trace",
    )


class _Table:
    """Reads rows of one file.

    Args:
        names: of all its columns.
        columns: of time, prompt and output.
        time: reads the first of these, in seconds.
    """

    def __init__(self, names: list[str], columns: tuple[str, str, str], time: Callable[[str, str], float]) -> None:
        self._names, self._columns, self._time = names, columns, time
        self._at = [names.index(c) for c in columns]

    def __call__(self, line: str) -> Recorded:
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as e:
            raise _Wrong(f"this is no row of a CSV file: {e}") from None
        if len(cells) != len(self._names):
            missing = self._names[len(cells)] if len(cells) < len(self._names) else "none"
            raise _Wrong(f"it has {len(cells)} fields where the header has {len(self._names)} (missing: {missing})")
        time, prompt, output = (cells[i].strip() for i in self._at)
        at = self._time(self._columns[0], time)
        return Recorded(at, _tokens(self._columns[1], prompt), _tokens(self._columns[2], output))


def _tokens(field: str, text: str) -> int:
    if not _COUNT.fullmatch(text) or int(text) > TOKENS:
        raise _Wrong(f"{field} must be a whole number from 0 to {TOKENS:,}, not {text!r:.40}")
    return int(text)


def _date(field: str, text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _Wrong(f"{field} must be a time such as 2023-11-16 18:15:46.680, not {text!r:.40}") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _seconds(field: str, text: str) -> float:
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not 0 <= at <= SECONDS:  # false of NaN too
        raise _Wrong(f"{field} must be a number of seconds from 0 to {SECONDS:g}, not {text!r:.40}")
    return at


_TABLES: dict[str, tuple[tuple[str, str, str], Callable[[str, str], float]]] = {
    "azure": (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date),
    "burstgpt": (("Timestamp", "Request tokens", "Response tokens"), _seconds),
}


# ---- JSON lines


Count = Annotated[int, msgspec.Meta(ge=0, le=TOKENS)]


class _Row(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=SECONDS)]  # ms
    input_length: Count
    output_length: Count
    hash_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] = []


def _mooncake(line: str) -> Recorded:
    try:
        row = msgspec.json.decode(line, type=_Row)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _Wrong(f"this is no row of Mooncake's: {e}") from None
    most = -(-row.input_length // BLOCK)
    if len(row.hash_ids) > most:
        raise _Wrong(f"hash_ids has {len(row.hash_ids)} blocks; {row.input_length} tokens have at most {most}")
    return Recorded(row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids))
