"""The GGUF reader: what it reads is right, and nothing it is given makes it do anything but read or refuse."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diastole.weights import GGUF, WeightsError, dequantize, open_checkpoint
from models.common import embedded
from weights.make import write_gguf

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_come_back(tmp_path: Path, kind: str) -> None:
    stored = write_gguf(tmp_path / "x.gguf", kind=kind)
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


def test_llama_rows_are_put_back_into_halves(tmp_path: Path) -> None:
    """Converters write row 2i of a head from its first half and row 2i+1 from its second."""
    stored = write_gguf(tmp_path / "x.gguf", kind="Q8_0")
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    for name, ours, heads in (("q", "q_proj", 4), ("k", "k_proj", 2)):
        gguf_rows = stored[f"blk.0.attn_{name}.weight"]
        hf_rows = checkpoint.f32(f"model.layers.0.self_attn.{ours}.weight")
        again = hf_rows.reshape(heads, 2, len(hf_rows) // heads // 2, -1).swapaxes(1, 2).reshape(hf_rows.shape)
        np.testing.assert_array_equal(again, gguf_rows)
        assert not np.array_equal(hf_rows, gguf_rows)


def test_gemma_norms_lose_their_one(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "x.gguf", arch="gemma3")
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    assert checkpoint.config["model_type"] == "gemma3_text"
    np.testing.assert_array_equal(
        checkpoint.f32("model.layers.1.post_feedforward_layernorm.weight"), stored["blk.1.post_ffw_norm.weight"] - 1
    )


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_every_family_has_the_names_that_models_ask_for(tmp_path: Path, arch: str) -> None:
    from diastole import registry
    from diastole.kernels.ref import TorchOps
    from diastole.nn.linear import Loader

    write_gguf(tmp_path / "x.gguf", arch=arch)
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    model = registry.model(checkpoint.config["model_type"])
    built = model.build(Loader(TorchOps(), checkpoint, "f32"), checkpoint.config)
    assert built.vocab == 32
    assert len(built.blocks) == 2


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        write_gguf(tmp_path / f"{name}.gguf", seed=seed)
    a, b, c = (open_checkpoint(tmp_path / f"{n}.gguf").fingerprint for n in "abc")
    assert a == c != b


@pytest.mark.model
def test_the_embedded_model_equals_the_oracle() -> None:
    path = embedded()
    with GGUF.open(path) as file:
        for t in gguf.GGUFReader(path).tensors[::7]:
            rows = slice(0, 64)
            got = dequantize(file.raw(t.name)).reshape(t.shape.tolist()[::-1])[rows]
            want = gguf.dequantize(t.data, t.tensor_type).reshape(t.shape.tolist()[::-1])[rows]
            np.testing.assert_array_equal(got, want)


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
}


@pytest.mark.parametrize("content", FOREIGN, ids=lambda c: FOREIGN[c])
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


def attempt(path: Path, data: bytes) -> None:
    """Open a file and read all of it, within a memory limit; only WeightsError may come."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.raw(name)
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


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(cut=st.floats(0, 1))
@fuzz
def test_truncation_anywhere(tiny: Path, tmp_path: Path, cut: float) -> None:
    data = tiny.read_bytes()
    attempt(tmp_path / "x.gguf", data[: int(cut * (len(data) - 1))])


@given(st.data())
@fuzz
def test_changed_bytes(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tiny.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 4_000))  # the header is there
        word = data.draw(st.sampled_from([b"\x00", b"\xff", b"\xff" * 8, struct.pack("<Q", HUGE), b"\x09\x00\x00\x00"]))
        content[at : at + len(word)] = word
    attempt(tmp_path / "x.gguf", bytes(content))
