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

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.gguf import file_array
from diastole.weights.layout import check_shapes
from diastole.weights.quants import KINDS, Raw, dequantize

LARGEST_HEADER = 16 << 20  # bytes; room for 100,000 tensors, and parsed JSON takes many times its text
LARGEST_JSON = 16 << 20
MOST_DIMS = 8
_INDEX = "model.safetensors.index.json"
_SUPPORTED = ("F32", "F16", "BF16")
# Bytes of the dtypes that may occur beside the weights, such as masks and counters; they are passed over.
_OTHER = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F64": 8}
_PREFIXES = (("model.language_model.", "model."), ("language_model.", ""))  # of the text part of a larger model


class HFCheckpoint:
    """A checkpoint in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = _object(path / "config.json")
        text = whole.get("text_config")
        self._part = isinstance(text, dict) and "hidden_size" not in whole
        beside = {k: v for k, v in whole.items() if k.endswith("_token_id") or k == "tie_word_embeddings"}
        self.config: dict[str, Any] = {**beside, **text} if self._part and isinstance(text, dict) else whole
        if isinstance(self.config.get("_class_name"), str):  # as diffusers calls a model's type
            self.config.setdefault("model_type", self.config["_class_name"])
        if not isinstance(self.config.get("model_type"), str):
            raise WeightsError(path / "config.json", "names no model_type")
        self._tensors: dict[str, Raw] = {}
        self._passed_over: dict[str, str] = {}  # name -> what it is stored as
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        claimed = self._index()
        for shard in self._shards(claimed):
            digest.update(self._read(shard))
        for name, shard_name in claimed.items():
            if self._name(name) not in self._tensors and self._name(name) not in self._passed_over:
                raise WeightsError(path / _INDEX, f"says that {shard_name!r} holds {name!r}, which it does not")
        check_shapes(path, self.config, ((n, r.shape) for n, r in self._tensors.items()))
        self.fingerprint = digest.hexdigest()

    def names(self) -> list[str]:
        return list(self._tensors)

    def raw(self, name: str) -> Raw:
        if name in self._passed_over:
            raise WeightsError(self.path, f"tensor {name!r} is stored as {self._passed_over[name]}; {_supported()}")
        if name not in self._tensors:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        return self._tensors[name]

    def f32(self, name: str) -> Array:
        return dequantize(self.raw(name))

    def close(self) -> None:
        self._tensors.clear()

    def _name(self, stored: str) -> str:
        """The name within the text model."""
        for prefix, better in _PREFIXES if self._part else ():
            if stored.startswith(prefix):
                return better + stored.removeprefix(prefix)
        return stored

    def _index(self) -> dict[str, str]:
        """Tensor names to shard names, where there is an index."""
        index = self.path / _INDEX
        if not index.exists():
            return {}
        names = _object(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            raise WeightsError(index, "has no weight_map of tensor names to file names")
        for shard in set(names.values()):
            if Path(shard).name != shard or not shard.isprintable():
                raise WeightsError(index, f"names a file outside its directory: {shard!r:.200}")
        return names

    def _shards(self, claimed: dict[str, str]) -> list[Path]:
        if claimed:
            return [self.path / s for s in sorted(set(claimed.values()))]
        whole = self.path / "model.safetensors"
        files = [whole] if whole.exists() else sorted(self.path.glob("*.safetensors"))
        if files:
            return files
        if list(self.path.glob("*.bin")) or list(self.path.glob("*.pt*")):
            raise WeightsError(self.path, "holds a pickled PyTorch checkpoint, which could run code; use safetensors")
        ggufs = ", ".join(p.name for p in sorted(self.path.glob("*.gguf"))[:3])
        hint = f"; give one of its GGUF files instead: {ggufs}" if ggufs else ""
        raise WeightsError(self.path, f"holds no .safetensors file{hint}")

    def _read(self, shard: Path) -> bytes:
        """Find a file's tensors; what tells this file from others: its header, its size, and a bit of every tensor."""
        header, size = _header(shard)
        mark = bytearray(header + str(size).encode())
        start = 8 + len(header)
        data = file_array(shard, 0, size)
        spans = []
        for stored, entry in _json(shard, header).items():
            if stored == "__metadata__":
                continue
            name = self._name(stored)
            if name in self._tensors or name in self._passed_over:
                raise WeightsError(shard, f"tensor {name!r} occurs twice")
            kind, shape, lo, hi = _entry(shard, name, entry, size - start)
            spans.append((lo, hi, name))
            middle = start + (lo + hi) // 2
            mark += data[middle : min(middle + 64, start + hi)].tobytes()
            if kind in _OTHER or not shape or hi == lo:
                self._passed_over[name] = kind if shape else f"a single {kind}"
                continue
            self._tensors[name] = Raw(name, kind, shape, data[start + lo : start + hi].reshape(prod(shape[:-1]), -1))
        spans.sort()
        for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
            if begin < end:
                raise WeightsError(shard, f"is damaged: tensors {one!r} and {other!r} overlap")
        return bytes(mark)


def _entry(shard: Path, name: str, entry: object, room: int) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise WeightsError(shard, f"is damaged: tensor {name!r} has no description")
    kind, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not (kind in _SUPPORTED or kind in _OTHER):
        raise WeightsError(shard, f"tensor {name!r} has dtype {kind!r:.60}; {_supported()}")
    if not _whole(shape) or not _whole(span) or len(span) != 2 or len(shape) > MOST_DIMS:
        raise WeightsError(shard, f"is damaged: tensor {name!r} has shape {shape!r:.60} and offsets {span!r:.60}")
    lo, hi = span
    if not lo <= hi <= room:
        raise WeightsError(shard, f"is truncated or damaged: tensor {name!r} ends at {hi}, the data at {room}")
    if prod(shape) * (_OTHER.get(kind) or KINDS[kind].nbytes) != hi - lo:
        raise WeightsError(shard, f"is damaged: tensor {name!r} of shape {shape} does not fill {hi - lo} bytes")
    return kind, tuple(shape), lo, hi


def _supported() -> str:
    return f"supported: {', '.join(_SUPPORTED)}"


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


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(path, "is not a file")
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(path, f"has more than {LARGEST_JSON} bytes")
        return _json(path, path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(path, "is missing: a model directory needs config.json and .safetensors files") from None
    except OSError as e:
        raise WeightsError(path, f"cannot be read: {e.strerror}") from e


def _json(path: Path, text: bytes) -> dict[str, Any]:
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
