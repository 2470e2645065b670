"""Hugging Face directories: safetensors equal to the library's reading, and damage refused by name."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diastole.weights import WeightsError, open_checkpoint
from weights.make import tiny_checkpoint

CONFIG = {"model_type": "llama", "hidden_size": 8}


def make(path: Path) -> dict[str, torch.Tensor]:
    """A directory with one tensor of every dtype."""
    torch.manual_seed(0)
    tensors = {
        "a.weight": torch.randn(4, 8),
        "b.weight": torch.randn(3, 8).half(),
        "c.weight": torch.randn(5, 8).bfloat16(),
        "d.weight": torch.randn(7),
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    return tensors


def test_tensors_equal_the_library(tmp_path: Path) -> None:
    tensors = make(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(tensors)
    for name, value in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(checkpoint.f32(name), value.float().numpy())


def test_shards(tmp_path: Path) -> None:
    tensors = make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for i, name in enumerate(tensors):
        save_file({name: tensors[name]}, tmp_path / f"part-{i}.safetensors")
    index: dict[str, Any] = {"weight_map": {n: f"part-{i}.safetensors" for i, n in enumerate(tensors)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path).names()) == set(tensors)
    index["weight_map"]["a.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside its directory"):
        open_checkpoint(tmp_path)


def rewrite(path: Path, **change: Any) -> None:
    """Change the description of tensor a.weight."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["a.weight"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dtype": "F8_E4M3"}, "F8_E4M3"),
        ({"dtype": ["F32"]}, "dtype"),
        ({"dtype": "I64"}, "does not fill"),
        ({"shape": [2] * 9}, "shape"),
        ({"data_offsets": [0]}, "offsets"),
        ({"shape": [4, 9]}, "does not fill"),
        ({"shape": [-4, 8]}, "shape"),
        ({"shape": [2**61, 8]}, "does not fill"),
        ({"shape": "x"}, "shape"),
        ({"data_offsets": [0, 2**40]}, "ends at"),
        ({"data_offsets": [128, 0]}, "ends at"),
        ({"data_offsets": [0, 128.5]}, "offsets"),
        ({"data_offsets": [16, 144]}, "overlap"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    make(tmp_path)
    rewrite(tmp_path / "model.safetensors", **change)
    with pytest.raises(WeightsError, match=what):
        open_checkpoint(tmp_path)


def test_incomplete_directories_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{nope")
    with pytest.raises(WeightsError, match="JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="not an object"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="model_type"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="pickle"):
        open_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")


def test_tensors_that_are_no_weights_are_passed_over(tmp_path: Path) -> None:
    tensors = make(tmp_path)
    more = {"mask": torch.ones(4, dtype=torch.int64), "count": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    save_file(tensors | more, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(tensors)
    for name, what in (("mask", "I64"), ("count", "a single F32"), ("other", "no tensor")):
        with pytest.raises(WeightsError, match=what):
            checkpoint.raw(name)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_larger_model(tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}norm.weight": torch.ones(8), "vision_tower.x": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    text = {"model_type": "gemma3_text", "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "eos_token_id": 1, "text_config": text}))
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == {"model.norm.weight", "vision_tower.x"}
    assert checkpoint.config == {**text, "eos_token_id": 1}


def test_shapes_must_fit_the_configuration(tmp_path: Path) -> None:
    make(tmp_path)
    save_file({"model.norm.weight": torch.ones(9)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"'model.norm.weight' has shape \(9,\), its configuration asks for \(8,\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("shard", "what"),
    [
        ("../model.safetensors", "outside its directory"),
        ("/etc/passwd", "outside its directory"),
        ("a\0b", "outside its directory"),
        ("\ud800", "outside its directory"),
        ("..", "is not a file"),
        ("", "is not a file"),
        ("absent.safetensors", "cannot be read"),
        ("model.safetensors", "says that 'model.safetensors' holds 'z.weight'"),
        (7, "no weight_map"),
    ],
)
def test_an_index_is_not_believed(tmp_path: Path, shard: object, what: str) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"z.weight": shard}}))
    with pytest.raises(WeightsError, match=what):
        open_checkpoint(tmp_path)


def test_fingerprints_tell_directories_apart(tmp_path: Path) -> None:
    prints = []
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        prints.append(open_checkpoint(tiny_checkpoint(tmp_path / name, "llama", "hf", seed=seed)).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def raw_file(path: Path, header: bytes, claimed: int | None = None, data: bytes = b"\0" * 64) -> None:
    make(path)
    size = len(header) if claimed is None else claimed
    (path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + data)


ENTRY = b'"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
HEADERS: dict[str, tuple[bytes, int | None]] = {
    "header claims": (b"{}", 2**62),
    "a key occurs twice": (b"{" + ENTRY + b", " + ENTRY + b"}", None),
    "not an object": (b"[]", None),
    "has no description": (b'{"x": 3}', None),
    "cannot be read": (b"[" * 100_000, None),
}


@pytest.mark.parametrize("what", HEADERS)
def test_damaged_headers_are_named(tmp_path: Path, what: str) -> None:
    raw_file(tmp_path, *HEADERS[what])
    with pytest.raises(WeightsError, match=what):
        open_checkpoint(tmp_path)


# ---- fuzzing


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with one tensor of every dtype."""
    path = tmp_path_factory.mktemp("hf")
    make(path)
    return (path / "model.safetensors").read_bytes()


def attempt(path: Path) -> None:
    """Open a directory and read all of it, within a memory limit; only WeightsError may come."""
    message = str(path)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.f32(name)
    except WeightsError as e:
        message = e.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert str(path) in message
    assert peak < 2**20


fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PARTS = ["dtype", "shape", "data_offsets"]


@given(st.data())
@fuzz
def test_changed_bytes(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, 400))
        content[at : at + 1] = bytes([data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789"[]{},')))])
    (tmp_path / "model.safetensors").write_bytes(
        bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    )
    attempt(tmp_path)


SCRAPS = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "F32", "BF16", "I8", "F8_E5M2"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@given(st.data())
@fuzz
def test_changed_descriptions(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Sound JSON that says something absurd, of tensors and of the model."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(sound)
    small = st.lists(st.integers(-1, 20), max_size=4)
    change = {k: data.draw(st.one_of(SCRAPS, small)) for k in data.draw(st.sets(st.sampled_from(PARTS), min_size=1))}
    rewrite(file, **change)
    config = {**CONFIG, **data.draw(st.dictionaries(st.sampled_from([*CONFIG, "head_dim", "text_config"]), SCRAPS))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    attempt(tmp_path)
