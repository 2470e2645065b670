"""Tiny model files for tests: random weights, real containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from diastole.types import Array

TEXT = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26))]


def tensors(
    arch: str, seed: int = 0, d: int = 64, f: int = 96, layers: int = 2, heads: int = 4, kv: int = 2
) -> dict[str, Array]:
    """GGUF names and random float32 values of a small decoder."""
    rng = np.random.default_rng(seed)
    head = d // heads

    def w(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    out = {"token_embd.weight": w(len(TEXT) + 3, d), "output_norm.weight": 1 + w(d)}
    for i in range(layers):
        at = f"blk.{i}"
        out |= {
            f"{at}.attn_norm.weight": 1 + w(d),
            f"{at}.attn_q.weight": w(d, d),
            f"{at}.attn_k.weight": w(kv * head, d),
            f"{at}.attn_v.weight": w(kv * head, d),
            f"{at}.attn_output.weight": w(d, d),
            f"{at}.ffn_norm.weight": 1 + w(d),
            f"{at}.ffn_gate.weight": w(f, d),
            f"{at}.ffn_up.weight": w(f, d),
            f"{at}.ffn_down.weight": w(d, f),
        }
        if arch == "qwen2":
            out |= {f"{at}.attn_{n}.bias": w(m) for n, m in (("q", d), ("k", kv * head), ("v", kv * head))}
        if arch in {"qwen3", "gemma3"}:
            out |= {f"{at}.attn_{n}_norm.weight": 1 + w(head) for n in "qk"}
        if arch == "gemma3":
            out |= {f"{at}.post_{n}.weight": 1 + w(d) for n in ("attention_norm", "ffw_norm")}
    return out


def write_gguf(path: Path, arch: str = "llama", kind: str = "F32", seed: int = 0, **extra: Any) -> dict[str, Array]:
    """A GGUF file; returns its tensors as float32, as they can be read back."""
    values = tensors(arch, seed)
    g = gguf.GGUFWriter(path, arch)
    g.add_context_length(256)
    g.add_embedding_length(64)
    g.add_feed_forward_length(96)
    g.add_block_count(2)
    g.add_head_count(4)
    g.add_head_count_kv(2)
    g.add_layer_norm_rms_eps(1e-5)
    g.add_rope_freq_base(10_000.0)
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("gpt-2")
    vocabulary = [*TEXT, "<|im_end|>", "ab", "Ġ"]
    g.add_token_list(vocabulary)
    g.add_token_types([3, 3, 3, *([1] * 26), 3, 1, 1])
    g.add_token_merges(["a b"])
    g.add_bos_token_id(1)
    g.add_eos_token_id(2)
    for key, value in extra.items():
        g.add_string(key.replace("__", "."), value)
    stored = {}
    wanted = getattr(gguf.GGMLQuantizationType, kind)
    for name, value in values.items():
        to = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else wanted
        data = gguf.quantize(value, to)
        g.add_tensor(name, data, raw_dtype=to)
        stored[name] = gguf.dequantize(data, to).reshape(value.shape)
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    return stored
