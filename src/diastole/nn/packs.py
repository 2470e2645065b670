"""Packs: matrices in the kernels' layouts, kept in a file between starts, so that a checkpoint is converted once.

    magic | length of the index, u64 | index, JSON | zeros up to a multiple of 4096 | matrices, each at such a multiple

The index names the matrices and says where they lie. The file is written whole beside its place and then renamed; one
that does not fit what is asked for is written anew. On reading it is mapped, and copied into memory on huge pages, 0.2
seconds for a gigabyte: reading weights through the mapping, with its small pages, would slow decoding down.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diastole.kernels.table import Packed
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

MAGIC = b"DIAPACK1"
LARGEST_INDEX = 64 << 20  # bytes
_ALIGN = 4096
_HEAD = len(MAGIC) + 8


class Packs(Protocol):
    """Where packed matrices are kept between starts."""

    def get(self, name: str) -> list[Packed] | None:
        """The parts of a matrix, None if they are not kept."""
        ...

    def put(self, name: str, parts: Sequence[Packed]) -> None:
        """Keep them."""
        ...


class NoPacks:
    """Nothing is kept."""

    def get(self, name: str) -> None:
        return None

    def put(self, name: str, parts: Sequence[Packed]) -> None:
        """Let go."""


class PackFile:
    """Packs in one file. As a context manager: what was put is written at the end, unless loading failed.

    Args:
        path: its place; the directory is made.
        ops: give memory, and say how many bytes a matrix has.
        warn: is told in one sentence why the file could not be read or written; both do no harm.
    """

    def __init__(self, path: Path, ops: Ops, warn: Callable[[str], None]) -> None:
        self.path, self._ops, self._warn = path, ops, warn
        self._parts: dict[str, list[Packed]] = {}
        self._new = False
        self._map, self._index = self._open()

    def get(self, name: str) -> list[Packed] | None:
        if name not in self._parts and name in self._index:
            try:
                self._parts[name] = [self._read(*entry) for entry in self._index[name]]
            except (TypeError, ValueError) as e:
                self._damaged(str(e))
        return self._parts.get(name)

    def put(self, name: str, parts: Sequence[Packed]) -> None:
        self._parts[name] = list(parts)
        self._new = True

    def __enter__(self) -> PackFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map = None
        if kind is None and self._new:
            try:
                self._write()
            except OSError as e:
                self._warn(f"converted weights are not kept for the next start: {self.path}: {e.strerror or e}")

    def _open(self) -> tuple[Array | None, dict[str, Any]]:
        try:
            with self.path.open("rb") as f:
                whole = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            return whole, _index_of(whole)
        except FileNotFoundError:
            return None, {}
        except (OSError, ValueError, KeyError, TypeError) as e:
            self._damaged(str(e))
            return None, {}

    def _damaged(self, why: str) -> None:
        self._index = {}
        self._warn(f"{self.path} is damaged ({why}): weights are converted again")

    def _read(self, fmt: str, n: int, k: int, offset: int) -> Packed:
        size = self._ops.packed_bytes(fmt, n, k)
        if self._map is None or not (0 <= offset <= len(self._map) - size):
            raise ValueError("a matrix lies outside the file")
        data = self._ops.alloc(size)
        data[:] = self._map[offset : offset + size]
        return Packed(fmt, n, k, data)  # type: ignore[arg-type]  # packed_bytes knows no other

    def _write(self) -> None:
        index: dict[str, list[tuple[str, int, int, int]]] = {}
        at, body = 0, []
        for name, parts in self._parts.items():
            index[name] = []
            for p in parts:
                index[name].append((p.fmt, p.n, p.k, at))
                body.append(p.data)
                at += _up(p.nbytes)
        # Offsets in the index count from the first matrix: where that lies depends on how long the index is.
        text = json.dumps({"bytes": at, "matrices": index}).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as f:
                f.write(MAGIC + len(text).to_bytes(8, "little") + text)
                f.write(bytes(_up(f.tell()) - f.tell()))
                for data in body:
                    data.tofile(f)
                    f.write(bytes(_up(len(data)) - len(data)))
            part.rename(self.path)
        finally:
            part.unlink(missing_ok=True)


def _index_of(whole: Array) -> dict[str, Any]:
    """The index with offsets from the start of the file.

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    if whole[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError("it does not begin as one of ours")
    length = int.from_bytes(whole[len(MAGIC) : _HEAD].tobytes(), "little")
    if length > min(LARGEST_INDEX, len(whole) - _HEAD):
        raise ValueError("its index is too long")
    found = json.loads(whole[_HEAD : _HEAD + length].tobytes())
    start = _up(_HEAD + length)
    if start + found["bytes"] != len(whole):
        raise ValueError("it has another length than it says")
    index = {
        str(name): [(str(fmt), int(n), int(k), start + int(at)) for fmt, n, k, at in parts]
        for name, parts in found["matrices"].items()
    }
    if any(at < start for parts in index.values() for *_, at in parts):
        raise ValueError("a matrix lies outside the file")
    return index


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
