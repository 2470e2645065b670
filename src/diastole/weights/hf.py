"""A Hugging Face directory as a checkpoint: config.json and safetensors, single or in shards.

safetensors: header length u64 | header (JSON: name -> dtype, shape, data_offsets) | data
"""

from __future__ import annotations

import hashlib
import itertools
import json
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.gguf import file_array
from diastole.weights.quants import KINDS, Raw, dequantize

LARGEST_HEADER = 100 * 2**20
LARGEST_JSON = 64 * 2**20
_INDEX = "model.safetensors.index.json"


class HFCheckpoint:
    """A checkpoint in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _object(path / "config.json")
        if isinstance(self.config.get("text_config"), dict) and "hidden_size" not in self.config:
            self.config = self.config["text_config"]
        if not isinstance(self.config.get("model_type"), str):
            raise WeightsError(path / "config.json", "names no model_type")
        self._tensors: dict[str, Raw] = {}
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for shard in self._shards():
            header, size = _header(shard)
            digest.update(header)
            digest.update(str(size).encode())
            self._read(shard, header, size, digest)
        self.fingerprint = digest.hexdigest()

    def names(self) -> list[str]:
        return list(self._tensors)

    def raw(self, name: str) -> Raw:
        if name not in self._tensors:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        return self._tensors[name]

    def f32(self, name: str) -> Array:
        return dequantize(self.raw(name))

    def close(self) -> None:
        self._tensors.clear()

    def _shards(self) -> list[Path]:
        index = self.path / _INDEX
        if index.exists():
            names = _object(index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
                raise WeightsError(index, "has no weight_map of tensor names to file names")
            shards = sorted(set(names.values()))
            for shard in shards:
                if Path(shard).name != shard:
                    raise WeightsError(index, f"names a file outside its directory: {shard!r}")
            return [self.path / s for s in shards]
        files = sorted(self.path.glob("*.safetensors"))
        if files:
            return files
        if list(self.path.glob("*.bin")) or list(self.path.glob("*.pt*")):
            raise WeightsError(self.path, "holds a pickled PyTorch checkpoint, which could run code; use safetensors")
        ggufs = ", ".join(p.name for p in sorted(self.path.glob("*.gguf"))[:3])
        hint = f"; give one of its GGUF files instead: {ggufs}" if ggufs else ""
        raise WeightsError(self.path, f"holds no .safetensors file{hint}")

    def _read(self, shard: Path, header: bytes, size: int, digest: Any) -> None:
        start = 8 + len(header)
        data = file_array(shard, 0, size)
        for spot in np.linspace(start, max(size - 256, start), 64).astype(int):
            digest.update(data[spot : spot + 256].tobytes())
        spans = []
        for name, entry in _json(shard, header).items():
            if name == "__metadata__":
                continue
            if name in self._tensors:
                raise WeightsError(shard, f"tensor {name!r} occurs twice")
            kind, shape, lo, hi = _entry(shard, name, entry, size - start)
            spans.append((lo, hi, name))
            flat = data[start + lo : start + hi]
            self._tensors[name] = Raw(name, kind, shape, flat.reshape(prod(shape[:-1]), -1))
        spans.sort()
        for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
            if begin < end:
                raise WeightsError(shard, f"is damaged: tensors {one!r} and {other!r} overlap")


def _entry(shard: Path, name: str, entry: object, room: int) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise WeightsError(shard, f"is damaged: tensor {name!r} has no description")
    kind, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in {"F32", "F16", "BF16"}:
        raise WeightsError(shard, f"tensor {name!r} has dtype {kind!r}; supported: F32, F16, BF16")
    if not _whole(shape) or not _whole(span) or len(span) != 2 or not 1 <= len(shape) <= 8 or 0 in shape:
        raise WeightsError(shard, f"is damaged: tensor {name!r} has shape {shape!r:.60} and offsets {span!r:.60}")
    lo, hi = span
    if not lo <= hi <= room:
        raise WeightsError(shard, f"is truncated or damaged: tensor {name!r} ends at {hi}, the data at {room}")
    if prod(shape) * KINDS[kind].nbytes != hi - lo:
        raise WeightsError(shard, f"is damaged: tensor {name!r} of shape {shape} does not fill {hi - lo} bytes")
    return kind, tuple(shape), lo, hi


def _whole(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _header(shard: Path) -> tuple[bytes, int]:
    """The JSON header and the file's size."""
    try:
        with shard.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(0)
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise WeightsError(shard, f"is no safetensors file or truncated: its header claims {length} bytes")
            return f.read(length), size
    except OSError as e:
        raise WeightsError(shard, f"cannot be read: {e.strerror}") from e


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(path, f"has more than {LARGEST_JSON} bytes")
        return _json(path, path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(path, "is missing: a model directory needs config.json and .safetensors files") from None
    except OSError as e:
        raise WeightsError(path, f"cannot be read: {e.strerror}") from e


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WeightsError(path, f"is damaged: its JSON cannot be read ({e})") from None
    if not isinstance(value, dict):
        raise WeightsError(path, "is damaged: its JSON is not an object")
    return value
