"""One safetensors file: its tensors where they lie, mapped, none of its claims believed.

header length u64 | header (JSON: name -> dtype, shape, data_offsets) | data
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from diastole.weights.error import WeightsError
from diastole.weights.gguf import file_array
from diastole.weights.quants import KINDS, Raw

LARGEST_HEADER = 16 << 20  # bytes; room for 100,000 tensors, and parsed JSON takes many times its text
LARGEST_JSON = 16 << 20
MOST_DIMS = 8
SUPPORTED = ("F32", "F16", "BF16")
# Bytes of the dtypes that may occur beside the weights, such as masks and counters; they are passed over.
_OTHER = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F64": 8}


@dataclass(frozen=True, slots=True)
class Shard:
    """What a file holds."""

    tensors: dict[str, Raw]
    passed_over: dict[str, str]  # name -> what it is stored as
    mark: bytes  # what tells this file from others: its header, its size, and a bit of every tensor


def read_shard(
    shard: Path, renamed: Callable[[str], str] = lambda stored: stored, known: Collection[str] = ()
) -> Shard:
    """Find a file's tensors.

    Args:
        renamed: what a stored name is called here.
        known: names that other files hold.

    Raises:
        WeightsError: it is damaged, or holds a name twice or one of those.
    """
    header, size = _header(shard)
    mark = bytearray(header + str(size).encode())
    start = 8 + len(header)
    data = file_array(shard, 0, size)
    tensors: dict[str, Raw] = {}
    passed_over: dict[str, str] = {}
    spans = []
    for stored, entry in parsed(shard, header).items():
        if stored == "__metadata__":
            continue
        name = renamed(stored)
        if name in tensors or name in passed_over or name in known:
            raise WeightsError(shard, f"tensor {name!r} occurs twice")
        kind, shape, lo, hi = _entry(shard, name, entry, size - start)
        spans.append((lo, hi, name))
        middle = start + (lo + hi) // 2
        mark += data[middle : min(middle + 64, start + hi)].tobytes()
        if kind in _OTHER or not shape or hi == lo:
            passed_over[name] = kind if shape else f"a single {kind}"
            continue
        tensors[name] = Raw(name, kind, shape, data[start + lo : start + hi].reshape(prod(shape[:-1]), -1))
    spans.sort()
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise WeightsError(shard, f"is damaged: tensors {one!r} and {other!r} overlap")
    return Shard(tensors, passed_over, bytes(mark))


def supported() -> str:
    """The dtypes that weights may have, as messages say it."""
    return f"supported: {', '.join(SUPPORTED)}"


def _entry(shard: Path, name: str, entry: object, room: int) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise WeightsError(shard, f"is damaged: tensor {name!r} has no description")
    kind, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not (kind in SUPPORTED or kind in _OTHER):
        raise WeightsError(shard, f"tensor {name!r} has dtype {kind!r:.60}; {supported()}")
    if not _whole(shape) or not _whole(span) or len(span) != 2 or len(shape) > MOST_DIMS:
        raise WeightsError(shard, f"is damaged: tensor {name!r} has shape {shape!r:.60} and offsets {span!r:.60}")
    lo, hi = span
    if not lo <= hi <= room:
        raise WeightsError(shard, f"is truncated or damaged: tensor {name!r} ends at {hi}, the data at {room}")
    if prod(shape) * (_OTHER.get(kind) or KINDS[kind].nbytes) != hi - lo:
        raise WeightsError(shard, f"is damaged: tensor {name!r} of shape {shape} does not fill {hi - lo} bytes")
    return kind, tuple(shape), lo, hi


def _whole(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _header(shard: Path) -> tuple[bytes, int]:
    """The JSON header and the file's size."""
    try:
        if shard.exists() and not shard.is_file():
            raise WeightsError(shard, "is not a file")
        with shard.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(0)
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise WeightsError(shard, f"is no safetensors file or truncated: its header claims {length} bytes")
            return f.read(length), size
    except OSError as e:
        raise WeightsError(shard, f"cannot be read: {e.strerror}") from e


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        WeightsError: it is missing, too large, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(path, "is not a file")
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(path, f"has more than {LARGEST_JSON} bytes")
        return parsed(path, path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(path, "is missing: a model directory needs config.json and .safetensors files") from None
    except OSError as e:
        raise WeightsError(path, f"cannot be read: {e.strerror}") from e


def parsed(path: Path, text: bytes) -> dict[str, Any]:
    """JSON that is an object; path: for messages."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise WeightsError(path, f"is damaged: its JSON cannot be read ({e})") from None
    if not isinstance(value, dict):
        raise WeightsError(path, "is damaged: its JSON is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without two values for one key, between which readers choose differently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice")
    return value
