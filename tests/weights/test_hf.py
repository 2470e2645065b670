"""Hugging Face directories: safetensors equal to the library's reading, and damage refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diastole.weights import WeightsError, open_checkpoint

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


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    make(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, 400))
        content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    message = str(tmp_path)
    try:
        checkpoint = open_checkpoint(tmp_path)
        for name in checkpoint.names():
            checkpoint.f32(name)
    except WeightsError as e:
        message = e.message
    assert str(tmp_path) in message
