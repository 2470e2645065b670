"""Both formats show one model: the same names, numbers and configuration, whatever converters did to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from diastole.types import Array
from diastole.weights import WeightsError, open_checkpoint
from diastole.weights.quants import KINDS
from weights.make import FAMILIES, pair_rows, tiny_checkpoint, write_gguf

SAME = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "max_position_embeddings", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"num_attention_heads": 6},
    "gemma3": {"num_hidden_layers": 7, "query_pre_attn_scalar": 48},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_formats_show_the_same_model(tmp_path: Path, family: str) -> None:
    hf = open_checkpoint(tiny_checkpoint(tmp_path / "hf", family, "hf", **EXTRAS[family]))
    ours = open_checkpoint(tiny_checkpoint(tmp_path, family, "gguf", **EXTRAS[family]))
    assert set(ours.names()) == set(hf.names())
    for name in hf.names():
        off = 1e-6 if family == "gemma3" and name.endswith("norm.weight") else 0  # 1 + w - 1 is not quite w
        np.testing.assert_allclose(ours.f32(name), hf.f32(name), rtol=0, atol=off)
        assert ours.raw(name).name == name
    for key in SAME:
        if hf.config.get(key) is not None:
            assert ours.config[key] == hf.config[key], key
    assert ours.config["rms_norm_eps"] == pytest.approx(hf.config["rms_norm_eps"])
    if family == "gemma3":
        for key in ("sliding_window", "layer_types"):
            assert ours.config[key] == hf.config[key]
        assert ours.config["query_pre_attn_scalar"] == pytest.approx(48)
        assert ours.config["hidden_act"] == hf.config["hidden_activation"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_reads_as_transformers_reads_it(tmp_path: Path, family: str) -> None:
    """transformers has its own loading of GGUF, with its own undoing of what converters do."""
    path = tiny_checkpoint(tmp_path, family, "gguf", "Q8_0")
    checkpoint = open_checkpoint(path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config)
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    want = {n: w.float().numpy() for n, w in loaded.items()}
    assert set(want) == set(checkpoint.names())
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.f32(name), want[name])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_put_back_in_every_kind(tmp_path: Path, kind: str) -> None:
    """Converters store row 2i of a head from its first half and row 2i+1 from its second."""
    stored = write_gguf(tmp_path / "x.gguf", kind=kind, d=256, f=256)
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    for name, ours, heads in (("q", "q_proj", 4), ("k", "k_proj", 2)):
        rows = checkpoint.f32(f"model.layers.0.self_attn.{ours}.weight")
        np.testing.assert_array_equal(pair_rows(rows, heads), stored[f"blk.0.attn_{name}.weight"])
        assert not np.array_equal(rows, stored[f"blk.0.attn_{name}.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_llama_is_reordered(tmp_path: Path, family: str) -> None:
    bias = np.arange(64, dtype=np.float32)
    stored = write_gguf(tmp_path / "x.gguf", family, more={"blk.0.attn_q.bias": bias})
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    weight = checkpoint.f32("model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(weight, stored["blk.0.attn_q.weight"]) == (family != "llama")
    shown = checkpoint.f32("model.layers.0.self_attn.q_proj.bias")
    np.testing.assert_array_equal(pair_rows(shown, 4) if family == "llama" else shown, bias)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "Q4_K", "Q6_K"])
def test_models_can_be_built_from_every_family(tmp_path: Path, family: str, kind: str) -> None:
    from diastole import registry
    from diastole.kernels.ref import TorchOps
    from diastole.nn.linear import Loader

    dims = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, family, "gguf", kind, **dims))
    model = registry.model(checkpoint.config["model_type"])
    built = model.build(Loader(TorchOps(), checkpoint, "auto"), checkpoint.config)
    assert built.vocab == 200
    assert len(built.blocks) == 2


def opened(path: Path, family: str = "llama", **options: Any) -> Any:
    write_gguf(path / "x.gguf", family, **options)
    return open_checkpoint(path / "x.gguf")


FACTORS: Array = np.linspace(1, 8, 8).astype(np.float32)


def test_rotary_factors_become_a_scaling(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, more={"rope_freqs.weight": FACTORS})
    assert checkpoint.config["rope_scaling"]["rope_type"] == "factors"
    np.testing.assert_array_equal(checkpoint.config["rope_scaling"]["factors"], FACTORS)
    assert "rope_freqs.weight" not in checkpoint.names()
    linear = opened(tmp_path, metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert opened(tmp_path).config["rope_scaling"] is None


def test_a_llama_file_with_a_window_is_mistral(tmp_path: Path) -> None:
    config = opened(tmp_path, metadata={"attention.sliding_window": 32}).config
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 32)
    assert opened(tmp_path, metadata={"attention.sliding_window": 0}).config["model_type"] == "llama"


def test_which_layers_of_gemma_are_windowed(tmp_path: Path) -> None:
    local, whole = "sliding_attention", "full_attention"
    for pattern, want in (
        (2, [local, whole, local]),
        ([False, True, True], [whole, local, local]),
        (None, [local] * 3),
    ):
        said = {"attention.sliding_window": 16, "attention.sliding_window_pattern": pattern}
        assert opened(tmp_path, "gemma3", layers=3, metadata=said).config["layer_types"] == want
    assert opened(tmp_path, "gemma3").config["layer_types"] == [whole, whole]


WRONG: dict[str, dict[str, Any]] = {
    "block_count is 0|does not say llama.block_count": {"metadata": {"block_count": 0}},
    "head_count is 'x'": {"metadata": {"attention.head_count": "x"}},
    "does not say llama.embedding_length": {"metadata": {"embedding_length": None}},
    "claims 2000000000 layers": {"metadata": {"block_count": 2_000_000_000}},
    "3 heads do not divide 64": {"metadata": {"attention.head_count": 3}},
    "differs between layers": {"metadata": {"attention.head_count_kv": [2, 4]}},
    "mixture of experts": {"metadata": {"expert_count": 8}},
    "rope.dimension_count = 8": {"metadata": {"rope.dimension_count": 8}},
    "value_length = 8": {"metadata": {"attention.value_length": 8}},
    "cannot be rotated in pairs": {"metadata": {"attention.key_length": 15}},
    "rms_epsilon is nan": {"metadata": {"attention.layer_norm_rms_epsilon": float("nan")}},
    "'rope_freqs.weight' has shape": {"more": {"rope_freqs.weight": FACTORS[:3]}},
    "must hold positive numbers": {"more": {"rope_freqs.weight": -FACTORS}},
    "are the same tensor": {"more": {"model.norm.weight": np.ones(64, np.float32)}},
    r"q_proj.weight' has shape \(64, 64\), its configuration asks for \(128, 64\)": {
        "metadata": {"attention.key_length": 32}
    },
    "o_proj.bias' has shape": {"more": {"blk.0.attn_output.bias": np.ones(63, np.float32)}},
}


@pytest.mark.parametrize("what", WRONG)
def test_absurd_metadata_is_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(WeightsError, match=what) as e:
        opened(tmp_path, **WRONG[what])
    assert (e.value.param, e.value.code) == ("model", "invalid_model")


def test_only_names_that_are_listed_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no tensor 'blk\.0\.attn_q\.weight'"):
        opened(tmp_path).raw("blk.0.attn_q.weight")
