"""Adapters: a low-rank change over a checkpoint equals the sum written out; what is not known is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diastole.assets.models import open_model, tokenizer_of
from diastole.bench.rig import Rig
from diastole.recipes.masked_lm import bytewise
from diastole.types import UserError
from diastole.weights import WeightsError, dequantize
from weights.make import tiny_checkpoint

QUERY = "model.layers.0.self_attn.q_proj.weight"
STEM = "base_model.model.model.layers.0.self_attn.q_proj"
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "use_dora": False}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "base", "llama", "hf")
    return tmp_path / "base"


def adapt(base: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    """An adapter over a model."""
    path = base.parent / "adapter"
    path.mkdir()
    if tensors is None:
        tensors = halves(base)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        json.dumps({**SETTINGS, "base_model_name_or_path": str(base), **settings})
    )
    return path


def halves(base: Path, rank: int = 2) -> dict[str, torch.Tensor]:
    """A (r, in) and B (out, r) for one matrix."""
    out, width = open_model(base).raw(QUERY).shape
    torch.manual_seed(1)
    return {f"{STEM}.lora_A.weight": torch.randn(rank, width), f"{STEM}.lora_B.weight": torch.randn(out, rank)}


@pytest.mark.parametrize(("settings", "scale"), [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5)])
def test_the_change_is_added(base: Path, settings: dict[str, Any], scale: float) -> None:
    half, plain = halves(base), open_model(base)
    changed = open_model(adapt(base, **settings))
    wanted = plain.f32(QUERY) + scale * (half[f"{STEM}.lora_B.weight"] @ half[f"{STEM}.lora_A.weight"]).numpy()
    np.testing.assert_allclose(changed.f32(QUERY), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(dequantize(changed.raw(QUERY)), changed.f32(QUERY))
    assert changed.raw(QUERY).shape == plain.raw(QUERY).shape
    for name in set(plain.names()) - {QUERY}:
        np.testing.assert_array_equal(changed.f32(name), plain.f32(name))
    assert changed.names() == plain.names()
    assert changed.config == plain.config
    assert changed.fingerprint != plain.fingerprint


def test_a_change_of_nothing_is_the_base(base: Path) -> None:
    nothing = {name: x if "lora_A" in name else torch.zeros_like(x) for name, x in halves(base).items()}
    changed, plain = open_model(adapt(base, nothing)), open_model(base)
    np.testing.assert_array_equal(changed.f32(QUERY), plain.f32(QUERY))


def test_settings_of_its_own_and_the_base_s_tokens(base: Path) -> None:
    bytewise(base, 256, 257)
    path = adapt(base)
    (path / "config.json").write_text(json.dumps({"model_type": "Dream", "mask_token_id": 3}))
    config = open_model(path).config
    assert config == {**open_model(base).config, "model_type": "Dream", "mask_token_id": 3}
    assert tokenizer_of(path).encode("one", special=False) == tokenizer_of(base).encode("one", special=False)


def test_fingerprints_tell_adapters_apart(base: Path) -> None:
    path = adapt(base)
    marks = {open_model(path).fingerprint}
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 9}))
    marks.add(open_model(path).fingerprint)
    save_file({k: 2 * v for k, v in halves(base).items()}, path / "adapter_model.safetensors")
    marks.add(open_model(path).fingerprint)
    assert len(marks) == 3


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; supported: LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"r": 0}, "r = 0"),
        ({"r": 2.5}, "r = 2.5"),
        ({"r": 3}, r"with r = 3 they must be"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)
def test_what_is_not_known_is_refused(base: Path, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(WeightsError, match=what):
        open_model(adapt(base, **settings))


def test_matrices_that_do_not_fit(base: Path) -> None:
    half = halves(base)
    a, b = half[f"{STEM}.lora_A.weight"], half[f"{STEM}.lora_B.weight"]
    elsewhere = STEM.replace("layers.0", "layers.99")
    for tensors, what in (
        ({f"{STEM}.lora_A.weight": a}, "only half A"),
        ({f"{elsewhere}.lora_A.weight": a, f"{elsewhere}.lora_B.weight": b}, "which base does not have"),
        ({f"{STEM}.lora_A.weight": a[:, 1:], f"{STEM}.lora_B.weight": b}, "must be"),
        ({f"{STEM}.lora_A.weight": a, f"{STEM}.lora_B.weight": b[1:]}, "must be"),
        ({f"{STEM}.lora_A.weight": a, f"{STEM}.lora_B.weight": b * torch.nan}, "not finite"),
        ({f"{STEM}.lora_embedding_A": a}, "only low-rank changes"),
        ({}, "changes nothing"),
    ):
        path = adapt(base, {k: v.contiguous() for k, v in tensors.items()})
        with pytest.raises(WeightsError, match=what):
            open_model(path)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def test_a_base_that_is_not_there(base: Path) -> None:
    with pytest.raises(UserError, match="adapter changes the model 'no-such-model': 'no-such-model' is no file"):
        open_model(adapt(base, base_model_name_or_path="no-such-model"))


def test_an_adapter_over_an_adapter(base: Path) -> None:
    path = adapt(base)
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(path)}))
    with pytest.raises(WeightsError, match="an adapter itself"):
        open_model(path)


def test_served_as_if_it_had_been_merged(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "llama", "hf", vocab_size=258)
    bytewise(base, 256, 257)
    path = adapt(base)
    changed = open_model(path)
    tensors = {name: torch.from_numpy(changed.f32(name)) for name in changed.names()}
    merged = shutil.copytree(base, tmp_path / "merged")
    save_file(tensors, merged / "model.safetensors")
    found = []
    for model in (path, merged, base):
        with Rig(str(model), kv="f32", weights="f32", threads=1) as rig, rig.stream(list(b"adapters")) as s:
            found.append(rig.absorb(s))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01
