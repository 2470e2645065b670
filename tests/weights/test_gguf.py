"""The GGUF reader: what it reads is right, and nothing it is given makes it do anything but read or refuse."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diastole.weights import GGUF, WeightsError, dequantize, open_checkpoint
from diastole.weights.gguf import _Parser
from diastole.weights.quants import KINDS
from models.common import embedded
from weights.make import FAMILIES, write_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One file of every family, of small ones, in different kinds."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    files = []
    for family, kind in zip(FAMILIES, ("Q8_0", "F16", "Q4_1", "BF16"), strict=True):
        write_gguf(path, family, kind, layers=1)
        files.append(path.read_bytes())
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_come_back(tmp_path: Path, kind: str) -> None:
    stored = write_gguf(tmp_path / "x.gguf", kind=kind, d=256, f=256)
    with GGUF.open(tmp_path / "x.gguf") as file:
        assert set(file.tensors) == set(stored)
        for name, want in stored.items():
            np.testing.assert_array_equal(dequantize(file.raw(name)), want)


def test_metadata_equals_the_oracle(tiny: Path) -> None:
    reader = gguf.GGUFReader(tiny)
    with GGUF.open(tiny) as file:
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                assert file.metadata[key] == field.contents()


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        write_gguf(tmp_path / f"{name}.gguf", seed=seed)
    a, b, c = (open_checkpoint(tmp_path / f"{n}.gguf").fingerprint for n in "abc")
    assert a == c != b


@pytest.mark.model
def test_the_embedded_model_equals_the_oracle() -> None:
    """Every tensor; of matrices, the first, the last and some rows between."""
    path = embedded()
    with GGUF.open(path) as file:
        oracle = gguf.GGUFReader(path).tensors
        assert list(file.tensors) == [t.name for t in oracle]
        for t in oracle:
            raw = file.raw(t.name)
            assert raw.shape == tuple(t.shape.tolist()[::-1])
            if len(raw.shape) == 1:
                np.testing.assert_array_equal(dequantize(raw), gguf.dequantize(t.data, t.tensor_type))
                continue
            rows = np.unique(np.linspace(0, raw.rows - 1, 65).astype(int))
            want = gguf.dequantize(np.ascontiguousarray(t.data[rows]), t.tensor_type)
            np.testing.assert_array_equal(dequantize(raw.take(rows)), want)


# ---- foreign and damaged files

FOREIGN = {
    b"": "empty",
    b"PK\x03\x04" + b"x" * 60: "zip",
    b"FUGG" + b"x" * 60: "big-endian",
    b'{"a": 1}' + b" " * 60: "text",
    b"version https://git-lfs.github.com/spec/v1\n": "LFS",
    b"<!DOCTYPE html>": "web page",
    (50).to_bytes(8, "little") + b'{"x": {}}' + b" " * 90: "safetensors",
    b"\x80\x04" + b"x" * 60: "pickle",
    b"random rubbish": "something else",
    b"GGU": "something else",
    b"GGUF" + struct.pack(">I", 3) + b"x" * 60: "big-endian",
}


@pytest.mark.parametrize("content", FOREIGN, ids=lambda c: f"{FOREIGN[c]} {c[:4]!r}")
def test_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=FOREIGN[content]) as e:
        open_checkpoint(path)
    assert str(path) in e.value.message


def header(version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s)) + s.encode()


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**63
FLOATS = tensor("t", [4]) + b"x" * 200
DAMAGED = {
    "version": header(version=1),
    "number of tensors": header(tensors=HUGE),
    "number of metadata pairs": header(pairs=HUGE),
    "length of a metadata key": header(pairs=1) + struct.pack("<Q", HUGE) + b"x" * 40,
    "unknown type": header(pairs=1) + text("k") + struct.pack("<I", 77) + b"x" * 40,
    "number of items": header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 4, HUGE) + b"x" * 40,
    "nests arrays": header(pairs=1)
    + text("k")
    + b"".join(struct.pack("<IQ", 9, 1) for _ in range(9)).join([struct.pack("<I", 9), b""]),
    "occurs twice": header(pairs=2) + 2 * (text("k") + struct.pack("<IB", 0, 1)) + b"x" * 40,
    "not UTF-8": header(pairs=1) + struct.pack("<Q", 2) + b"\xff\xfe" + b"x" * 40,
    "dimensions": header(tensors=1) + tensor("t", [2] * 5) + b"x" * 200,
    "shape": header(tensors=1) + tensor("t", [0, 4]) + b"x" * 200,
    "unknown kind": header(tensors=1) + tensor("t", [4], kind=99) + b"x" * 200,
    "stored as IQ2_XS": header(tensors=1) + tensor("t", [4], kind=17) + b"x" * 200,
    "comes in 32": header(tensors=1) + tensor("t", [33, 2], kind=8) + b"x" * 200,
    "behind the end": header(tensors=1) + tensor("t", [2**40, 2**20]) + b"x" * 200,
    "not aligned": header(tensors=1) + tensor("t", [4], offset=3) + b"x" * 200,
    "overlap": header(tensors=2) + tensor("a", [8]) + tensor("b", [8]) + b"x" * 200,
    "power of two": header(tensors=1, pairs=1)
    + text("general.alignment")
    + struct.pack("<II", 4, 33)
    + tensor("t", [4])
    + b"x" * 200,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(WeightsError, match=what):
        GGUF.open(path)


def test_an_architecture_that_is_not_supported_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", arch="llama")
    data = (tmp_path / "x.gguf").read_bytes().replace(b"llama", b"lamma")
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(WeightsError, match="lamma"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_header_of_unreasonable_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "x.gguf")
    monkeypatch.setattr("diastole.weights.gguf.LARGEST_HEADER", 1000)
    with pytest.raises(WeightsError, match="header of more than 1000 bytes"):
        GGUF.open(tmp_path / "x.gguf")


def test_what_is_not_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "is not a file"), (tmp_path / "nothing", "does not exist")):
        with pytest.raises(WeightsError, match=what):
            open_checkpoint(path)


# ---- fuzzing


def attempt(path: Path, data: bytes) -> None:
    """Open a file and read all of it, within a memory limit; only WeightsError may come."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.f32(name)
        checkpoint.close()
    except WeightsError as e:
        named = str(path) in e.message
    else:
        named = True
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert named
    assert peak < 20 * len(data) + 2**20


fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(cut=st.floats(0, 1))
@fuzz
def test_truncation_anywhere(tiny: Path, tmp_path: Path, cut: float) -> None:
    data = tiny.read_bytes()
    attempt(tmp_path / "x.gguf", data[: int(cut * (len(data) - 1))])


@given(st.data())
@fuzz
def test_changed_bytes(small: list[bytes], tmp_path: Path, data: st.DataObject) -> None:
    """Of models of every family, in many kinds."""
    content = bytearray(data.draw(st.sampled_from(small)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 4_000))  # the header is there
        word = data.draw(st.sampled_from([b"\x00", b"\xff", b"\xff" * 8, struct.pack("<Q", HUGE), b"\x09\x00\x00\x00"]))
        content[at : at + len(word)] = word
    attempt(tmp_path / "x.gguf", bytes(content))


NUMBERS = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**32 - 1, 2**62, HUGE, 2**64 - 1]))


@given(st.data())
@fuzz
def test_changed_numbers(small: list[bytes], tmp_path: Path, data: st.DataObject) -> None:
    """Counts, lengths, types, dimensions and offsets: every number of the header, where it stands."""
    content = bytearray(data.draw(st.sampled_from(small)))
    spots = numbers_of(bytes(content))
    for at, size in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=4)):
        content[at : at + size] = data.draw(NUMBERS).to_bytes(8, "little")[:size]
    attempt(tmp_path / "x.gguf", bytes(content))


VALUES = st.one_of(
    st.none(), st.integers(-5, 80), st.just(2**31), st.floats(), st.booleans(), st.text(max_size=3),
    st.lists(st.integers(0, 70), min_size=1, max_size=3), st.lists(st.booleans(), min_size=1, max_size=3),
)  # fmt: skip
KEYS = [
    "context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base", "attention.key_length",
    "attention.value_length", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "expert_count",
    "rope.scaling.original_context_length", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.scale", "rope.freq_base_swa",
]  # fmt: skip


@given(st.data())
@fuzz
def test_changed_metadata(tmp_path: Path, data: st.DataObject) -> None:
    """A sound file that says something absurd."""
    said = {k: data.draw(VALUES) for k in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))}
    more = data.draw(
        st.sampled_from([{}, {"rope_freqs.weight": np.float32([1, 2])}, {"model.norm.weight": np.ones(64)}])
    )
    more = {k: np.asarray(v, np.float32) for k, v in more.items()}
    write_gguf(tmp_path / "made.gguf", data.draw(st.sampled_from(FAMILIES)), metadata=said, more=more, layers=1)
    attempt(tmp_path / "x.gguf", (tmp_path / "made.gguf").read_bytes())


def numbers_of(content: bytes) -> list[tuple[int, int]]:
    """Offset and size of the numbers of a sound file's header."""
    spots: list[tuple[int, int]] = []

    class Watched(_Parser):
        def _number(self, form: str, what: str) -> Any:
            spots.append((self.at, struct.calcsize(form)))
            return super()._number(form, what)

    Watched(Path("x"), content, {}, {}).run()  # type: ignore[arg-type]
    return spots
