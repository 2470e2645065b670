"""A reader of GGUF files that trusts nothing it reads.

    magic "GGUF" | version u32 | tensors u64 | pairs u64 | pairs ... | tensor table ... | padding | tensor data
    pair:   key string | type u32 | value          string: length u64, bytes
    tensor: name string | dims u32 | dim u64 ... (fastest first) | kind u32 | offset u64 (from the start of the data)

Every count and length is compared with the bytes that are really left before anything of that size is made.
Source: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.quants import KINDS, Raw

VERSIONS = (2, 3)
MOST_DIMS = 4
MOST_NESTED = 2  # arrays of arrays
LONGEST_NAME = 65_535
LARGEST_HEADER = (
    64 << 20
)  # bytes; vocabularies of 260,000 tokens need about 8 MB, and lists take eight times their bytes
LARGEST_ALIGNMENT = 1 << 20

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Numbers of the kinds in the file format; those that are named but not in KINDS are known and not supported.
_KIND_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_LOOKS_LIKE = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"FUGG", "a GGUF file of a big-endian machine"),
    (b"ggml", "an old GGML file from before GGUF"),
    (b"ggjt", "an old GGML file from before GGUF"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not downloaded"),
    (b"<!DO", "a web page: the download went wrong"),
    (b"<htm", "a web page: the download went wrong"),
    (b"{", "a text file (JSON?)"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. shape has the rows first; offset and nbytes in bytes of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GGUF:
    """An open file: ``metadata`` by key, ``tensors`` by name; the bytes stay on disk until read."""

    def __init__(self, path: Path, file: BinaryIO, data: mmap.mmap) -> None:
        self.path, self._file, self._map = path, file, data
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        _Parser(self.path, data, self.metadata, self.tensors).run()

    @classmethod
    def open(cls, path: str | Path) -> GGUF:
        """Raises:
        WeightsError: no such file, or a foreign, damaged or truncated one.
        """
        path = Path(path)
        if path.exists() and not path.is_file():
            raise WeightsError(path, "is not a file")  # opening a pipe would wait for ever
        try:
            file = path.open("rb")
        except OSError as e:
            raise WeightsError(path, f"cannot be opened: {e.strerror}") from e
        try:
            size = file.seek(0, 2)
            if size == 0:
                raise WeightsError(path, "is an empty file")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                return cls(path, file, data)
            except BaseException:
                data.close()
                raise
        except BaseException:
            file.close()
            raise

    def raw(self, name: str) -> Raw:
        """A tensor's bytes, not copied.

        Raises:
            WeightsError: there is none of this name.
        """
        info = self.tensors.get(name)
        if info is None:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        flat = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        return Raw(name, info.kind, info.shape, flat.reshape(prod(info.shape[:-1]), -1))

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Some bytes of the file, fewer at its end."""
        return self._map[offset : offset + size]

    @property
    def nbytes(self) -> int:
        return len(self._map)

    def close(self) -> None:
        """Let go of the file. Arrays still in use keep it mapped."""
        self._file.close()
        try:
            self._map.close()
        except BufferError:
            return  # views of it live on; the map goes with the last of them

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Parser:
    """One pass over the header."""

    def __init__(self, path: Path, data: mmap.mmap, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
        self.path, self.data, self.metadata, self.tensors = path, data, metadata, tensors
        self.at, self.end = 0, len(data)

    def run(self) -> None:
        tensors, pairs = self._start()
        for _ in range(pairs):
            self._pair()
        infos = [self._tensor() for _ in range(tensors)]
        self._place(infos)

    def fail(self, what: str) -> WeightsError:
        return WeightsError(self.path, what)

    # ---- primitives

    def _take(self, size: int, what: str) -> bytes:
        if size > self.end - self.at:
            raise self.fail(
                f"is truncated or damaged: {what} at byte {self.at} needs {size} bytes, {self.end - self.at} are left"
            )
        if self.at + size > LARGEST_HEADER:
            raise self.fail(f"has a header of more than {LARGEST_HEADER} bytes: {what} ends at byte {self.at + size}")
        self.at += size
        return self.data[self.at - size : self.at]

    def _number(self, form: str, what: str) -> Any:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form), what))
        return value

    def _count(self, least: int, what: str) -> int:
        """A u64 count of things that take at least ``least`` bytes each."""
        count = int(self._number("<Q", what))
        if count > (self.end - self.at) // least:
            raise self.fail(f"is damaged: {what} says {count}, more than {self.end - self.at} remaining bytes can hold")
        return count

    def _string(self, what: str) -> str:
        size = self._count(1, f"the length of {what}")
        try:
            return self._take(size, what).decode()
        except UnicodeDecodeError as e:
            raise self.fail(f"is damaged: {what} before byte {self.at} is not UTF-8") from e

    # ---- header

    def _start(self) -> tuple[int, int]:
        magic = self.data[:4]
        if magic != b"GGUF":
            raise self.fail(f"is not a GGUF file but {self._looks_like()}")
        self.at = 4
        version = self._number("<I", "the version")
        if version not in VERSIONS:
            hint = " (a file of a big-endian machine)" if version >> 16 else ""
            raise self.fail(f"has GGUF version {version}{hint}; versions 2 and 3 are supported")
        tensors = self._count(24, "the number of tensors")
        return tensors, self._count(12, "the number of metadata pairs")

    def _looks_like(self) -> str:
        head = self.data[:64]
        for start, name in _LOOKS_LIKE:
            if head.startswith(start):
                return name
        if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < self.end:
            return "a safetensors file: give its directory, with config.json, instead"
        return f"something else (it begins with {head[:4]!r})"

    def _pair(self) -> None:
        key = self._string("a metadata key")
        if not key or len(key) > LONGEST_NAME:
            raise self.fail(f"is damaged: a metadata key before byte {self.at} has {len(key)} characters")
        if key in self.metadata:
            raise self.fail(f"is damaged: metadata key {key!r} occurs twice")
        self.metadata[key] = self._value(self._number("<I", f"the type of {key!r}"), key, 0)

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], f"the value of {key!r}")
        if kind == _STRING:
            return self._string(f"the value of {key!r}")
        if kind != _ARRAY:
            raise self.fail(f"is damaged: metadata key {key!r} has unknown type {kind}")
        if depth == MOST_NESTED:
            raise self.fail(f"is damaged: metadata key {key!r} nests arrays more than {MOST_NESTED} deep")
        inner = self._number("<I", f"the item type of {key!r}")
        if inner in _SCALARS:
            dtype = np.dtype("?" if inner == 7 else _SCALARS[inner])
            count = self._count(dtype.itemsize, f"the number of items of {key!r}")
            return np.frombuffer(self._take(count * dtype.itemsize, f"the items of {key!r}"), dtype).tolist()
        count = self._count(8 if inner == _STRING else 12, f"the number of items of {key!r}")
        return [self._value(inner, key, depth + 1) for _ in range(count)]

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string("a tensor name")
        if not name or len(name) > LONGEST_NAME:
            raise self.fail(f"is damaged: a tensor name before byte {self.at} has {len(name)} characters")
        dims = self._number("<I", f"the dimensions of {name!r}")
        if not 1 <= dims <= MOST_DIMS:
            raise self.fail(f"is damaged: tensor {name!r} has {dims} dimensions")
        shape = tuple(self._number("<Q", f"the shape of {name!r}") for _ in range(dims))[::-1]
        kind = self._number("<I", f"the kind of {name!r}")
        return name, kind, shape, self._number("<Q", f"the offset of {name!r}")

    # ---- data

    def _place(self, infos: list[tuple[str, int, tuple[int, ...], int]]) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        power = type(alignment) is int and alignment > 0 and not alignment & (alignment - 1)
        if not power or alignment > LARGEST_ALIGNMENT:
            raise self.fail(f"is damaged: general.alignment is {alignment!r}, not a power of two")
        start = -(-self.at // alignment) * alignment
        for name, number, shape, offset in infos:
            kind = _KIND_NAMES.get(number)
            if kind not in KINDS:
                known = ", ".join(KINDS)
                raise self.fail(f"tensor {name!r} is stored as {kind or f'unknown kind {number}'}; supported: {known}")
            size = self._nbytes(name, kind, shape)
            if name in self.tensors:
                raise self.fail(f"is damaged: tensor {name!r} occurs twice")
            if offset % alignment:
                raise self.fail(f"is damaged: tensor {name!r} at offset {offset} is not aligned to {alignment}")
            if start + offset + size > self.end:
                missing = start + offset + size - self.end
                raise self.fail(f"is truncated: tensor {name!r} ends {missing} bytes behind the end of the file")
            self.tensors[name] = TensorInfo(name, kind, shape, start + offset, size)
        # Many tensors in the same bytes would grow a small file into a large model.
        for a, b in itertools.pairwise(sorted(self.tensors.values(), key=lambda t: t.offset)):
            if a.offset + a.nbytes > b.offset:
                raise self.fail(f"is damaged: tensors {a.name!r} and {b.name!r} overlap at byte {b.offset}")

    def _nbytes(self, name: str, kind: str, shape: tuple[int, ...]) -> int:
        block = KINDS[kind]
        if 0 in shape or prod(shape) > 2**62:
            raise self.fail(f"is damaged: tensor {name!r} has shape {shape}")
        if shape[-1] % block.weights:
            raise self.fail(
                f"is damaged: rows of tensor {name!r} hold {shape[-1]} weights, {kind} comes in {block.weights}"
            )
        return prod(shape) // block.weights * block.nbytes


def file_array(path: Path, offset: int, nbytes: int) -> Array:
    """Bytes of a file, mapped and read-only: (nbytes,) uint8."""
    return np.memmap(path, np.uint8, "r", offset, (nbytes,))
