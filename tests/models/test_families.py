"""Every decoder family against Hugging Face transformers on small random weights, from both kinds of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from diastole import registry
from diastole.bench.quality import logits_of
from diastole.kernels.ref import TorchOps
from diastole.kernels.table import Ops, load
from diastole.nn.decoder import Decoder
from diastole.nn.family import Shape
from diastole.nn.inside import Inside, Paged, Read
from diastole.nn.linear import Loader
from diastole.slots import View
from diastole.types import Array, Batch, UserError
from diastole.weights import open_checkpoint

BASE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
FAMILIES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**BASE, tie_word_embeddings=True),
    "llama-3": transformers.LlamaConfig(**BASE, rope_parameters=LLAMA3),
    "llama-linear": transformers.LlamaConfig(
        **BASE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "mistral": transformers.MistralConfig(**BASE, sliding_window=20),
    "qwen2": transformers.Qwen2Config(**BASE),
    "qwen2-window": transformers.Qwen2Config(**BASE, use_sliding_window=True, sliding_window=16, max_window_layers=2),
    "qwen3": transformers.Qwen3Config(**BASE, head_dim=32),
    "gemma3": transformers.Gemma3TextConfig(
        **{**BASE, "num_hidden_layers": 8}, head_dim=32, sliding_window=16, query_pre_attn_scalar=48
    ),
}
IDS = np.random.default_rng(0).integers(0, 200, 150).astype(np.int32)


def directory(tmp_path: Path, family: str) -> tuple[Path, Array]:
    """A Hugging Face directory with random weights, and its logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").float().eval()
    with torch.no_grad():
        for p in model.parameters():  # norms and biases start at 0 or 1, which would hide mistakes
            p.add_(torch.randn_like(p) * 0.05)
        logits = model(torch.from_numpy(IDS[None].astype(np.int64))).logits[0].numpy()
    model.save_pretrained(tmp_path, safe_serialization=True)
    return tmp_path, logits


def build(path: Path, ops: Ops, fmt: Any = "f32", context: int = 0) -> Any:
    checkpoint = open_checkpoint(path)
    module = registry.model(checkpoint.config["model_type"])
    return module.build(Loader(ops, checkpoint, fmt), checkpoint.config, context)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, family: str) -> None:
    path, want = directory(tmp_path, family)
    for ops in (load(), TorchOps()):
        got = logits_of(build(path, ops), ops, IDS)
        assert np.abs(got - want).max() < 2e-5
        np.testing.assert_allclose(logits_of(build(path, ops), ops, IDS, chunks=(37, 1, 112)), got, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("fmt", ["bf16", "q8", "q4"])
def test_smaller_formats_stay_near(tmp_path: Path, family: str, fmt: str) -> None:
    """The native operators are as near to float32 as their plain twins, which round the same things."""
    path, want = directory(tmp_path, family)
    errors = []
    for ops in (load(), TorchOps()):
        got = logits_of(build(path, ops, fmt), ops, IDS)
        errors.append(float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean())))
    native, twin = errors
    assert 1e-4 < native < 1.1 * twin  # not below: it really is another format


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("fmt", "kv"), [("f32", "f32"), ("q8", "int8"), ("q4", "bf16")])
def test_fused_and_open_give_the_same_bits(tmp_path: Path, family: str, fmt: str, kv: Any) -> None:
    path, _ = directory(tmp_path, family)
    ops = load()
    if ops.fuse() is None:
        pytest.skip("the native operators are not built")
    model = build(path, ops, fmt)
    opened = logits_of(model, ops, IDS, kv, fused=False)
    np.testing.assert_array_equal(logits_of(model, ops, IDS, kv), opened)
    np.testing.assert_array_equal(logits_of(model, ops, IDS, kv, chunks=(3, 100, 1, 46)), opened)
    around = Inside(kernel=Paged())  # somebody acts inside the layers, who changes nothing
    np.testing.assert_array_equal(logits_of(model, ops, IDS, kv, chunks=(3, 100, 1, 46), inside=around), opened)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [True, False])
def test_in_parts_it_gives_the_same_bits(
    tmp_path: Path, family: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = directory(tmp_path, family)
    ops = load()
    model = build(path, ops, "q4")
    want = logits_of(model, ops, IDS, "bf16")

    def forward(self: Decoder, b: Batch, state: dict[str, Any]) -> Array:
        if not fused:
            state = {**state, "inside": Inside(kernel=Paged())}
        x = self.embedded(b.inputs, np.empty((len(b.inputs), self.width), np.float32))
        for first, last in ((0, 1), (1, 1), (1, len(self.blocks))):
            self.part(b, state, x, first, last)
        return self.logits(x[b.want])

    monkeypatch.setattr(Decoder, "forward", forward)
    np.testing.assert_array_equal(logits_of(model, ops, IDS, "bf16", chunks=(100, 50)), want)


def test_what_is_raised_inside_a_layer_comes_out(tmp_path: Path) -> None:
    path, _ = directory(tmp_path, "llama")
    ops = load()

    class Breaks(Paged):
        def __call__(self, view: View, *args: Any) -> None:
            if view.layer == 1:
                raise RuntimeError("in layer 1")

    model = build(path, ops, "f32")
    with pytest.raises(RuntimeError, match="in layer 1"):
        logits_of(model, ops, IDS, inside=Inside(kernel=Breaks()))
    assert np.isfinite(logits_of(model, ops, IDS)).all()  # and nothing is left locked


def test_the_slow_twin_of_attention_reads_through_the_store(tmp_path: Path) -> None:
    path, want = directory(tmp_path, "qwen2")
    ops = load()
    got = logits_of(build(path, ops, "f32"), ops, IDS, chunks=(100, 50), inside=Inside(kernel=Read()))
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_bias_on_one_of_stacked_matrices_is_kept(tmp_path: Path) -> None:
    """Only k has a bias: q's and v's count as zero."""
    path, _ = directory(tmp_path, "qwen2")
    checkpoint = open_checkpoint(path)
    names = [n for n in checkpoint.names() if ".q_proj.bias" not in n and ".v_proj.bias" not in n]
    checkpoint.names = lambda: names  # type: ignore[method-assign]
    at = "model.layers.0.self_attn"
    linear = Loader(load(), checkpoint, "f32").linear(*(f"{at}.{n}_proj" for n in "qkv"))
    assert linear.bias is not None
    np.testing.assert_array_equal(linear.bias[:64], 0)
    np.testing.assert_array_equal(linear.bias[64:96], checkpoint.f32(f"{at}.k_proj.bias"))
    np.testing.assert_array_equal(linear.bias[96:], 0)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path, _ = directory(tmp_path, "llama")
    with pytest.raises(UserError, match="context 999"):
        build(path, load(), context=999)
    config = open_checkpoint(path).config
    for change, param in (
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_act": "relu6"}, "hidden_act"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"max_position_embeddings": 2**31 - 1}, "context"),
    ):
        with pytest.raises(UserError) as e:
            Shape.read({**config, **change})
        assert e.value.param == param
    (path / "config.json").write_text((path / "config.json").read_text().replace('"llama"', '"lama"'))
    with pytest.raises(UserError, match="did you mean 'llama'"):
        build(path, load())
