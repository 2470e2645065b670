"""Larger shapes with random weights, for speed only: what they say means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.types import Array, UserError
from diastole.weights import GGUF

_STD = 0.02  # of the weights
_Q4_1, _Q8_0 = 3, 8  # numbers of the kinds in the file format


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int = 8192


SHAPES = {
    "0.5b-random": Shape(24, 896, 4864, 14, 2, 64),  # as Qwen2.5-0.5B, without biases and with a smaller vocabulary
    "1b-random": Shape(16, 2048, 8192, 32, 8, 64),  # as Llama-3.2-1B, with a smaller vocabulary
}


def write(name: str, source: Path, target: Path) -> Path:
    """A model file of this shape with Q4_1 matrices, a Q8_0 embedding, and the tokenizer of ``source``.

    Raises:
        UserError: the gguf package is not installed.
    """
    if target.exists():
        return target
    try:
        import gguf
    except ImportError:
        raise UserError("gguf is not installed: pip install 'diastole[peers]'", param="peers") from None
    shape = SHAPES[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    with GGUF.open(source) as base:
        vocab = len(base.metadata["tokenizer.ggml.tokens"])
        for key, value in base.metadata.items():
            if key.startswith("tokenizer."):
                _copy(writer, key, value)
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(100_000.0)
    writer.add_vocab_size(vocab)
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", _q8_0(rng, vocab, shape.hidden), raw_dtype=gguf.GGMLQuantizationType(_Q8_0))
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for i in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(shape.hidden, np.float32))
        for matrix, rows, columns in (
            ("attn_q", q, shape.hidden),
            ("attn_k", kv, shape.hidden),
            ("attn_v", kv, shape.hidden),
            ("attn_output", shape.hidden, q),
            ("ffn_gate", shape.inner, shape.hidden),
            ("ffn_up", shape.inner, shape.hidden),
            ("ffn_down", shape.hidden, shape.inner),
        ):
            data = _q4_1(rng, rows, columns)
            writer.add_tensor(f"blk.{i}.{matrix}.weight", data, raw_dtype=gguf.GGMLQuantizationType(_Q4_1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
    return target


def _copy(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _q4_1(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Random blocks: d f16, m f16, 32 nibbles."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 20), np.uint8)
    d = _STD / np.sqrt((16**2 - 1) / 12)
    blocks[..., :4] = np.array([d, -7.5 * d], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _q8_0(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Random blocks: d f16, 32 bytes."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 34), np.uint8)
    blocks[..., :2] = np.array([_STD / np.sqrt((256**2 - 1) / 12)], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
